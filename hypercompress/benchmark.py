"""How fast a student is beside its teacher on this machine, as a whole and layer by layer.

*Efficiency* is speedup / MACs ratio: at 1 every multiply-accumulate saved is time saved; below it the rest went into
memory traffic, launches and shapes that kernels do not like. It exceeds 1 where the saved ones were slower than others.

Shape letter: ``b`` samples of a batch.
"""

import copy
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hypercompress.errors import BenchmarkError
from hypercompress.inspection import inspect
from hypercompress.kinds import low_rank_layers
from hypercompress.running.calling import evaluating, first_argument
from hypercompress.running.hooks import hooked
from hypercompress.running.timing import Clock, Timing, interleaved, threads, waiting
from hypercompress.student import Student, network_of

LAYER_SHARE = 0.2  # of `Settings.seconds` for each single layer: there are dozens


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Args:
        seconds: measured time of each of the two models, warm-up aside; above 0, at most an hour.
        threads: of torch on the CPU, from 1 to the processors there are; ``None``: as many as it uses now.
        channels_last: lay images and convolution weights out as [b, h, w, c] in memory.

    Raises:
        BenchmarkError: a value out of its range.
    """

    seconds: float = 1.0
    threads: int | None = None
    channels_last: bool = False

    def __post_init__(self) -> None:
        if not 0.0 < self.seconds <= 3600.0:
            raise BenchmarkError(
                f"received {self.seconds:g} seconds to measure; expected a number above 0 and at most 3600; pass one"
            )
        processors = os.cpu_count() or 1
        if self.threads is not None and not 1 <= self.threads <= processors:
            raise BenchmarkError(
                f"received {self.threads} threads; expected a whole number from 1 to {processors}, the processors of "
                "this machine; pass one"
            )


@dataclass(frozen=True)
class Speed:
    """Two times, and how many times the student's multiply-accumulates the dense side has (NaN: none were counted)."""

    dense: Timing
    student: Timing
    macs_ratio: float

    @property
    def speedup(self) -> float:
        return self.dense.ms / self.student.ms

    @property
    def efficiency(self) -> float:
        return self.speedup / self.macs_ratio

    def as_json(self, dense: str, student: str) -> dict[str, Any]:
        """All numbers, with these names for the two sides."""
        return {
            f"{dense}_ms": self.dense.ms,
            f"{dense}_ms_quartiles": list(self.dense.quartiles),
            f"{student}_ms": self.student.ms,
            f"{student}_ms_quartiles": list(self.student.quartiles),
            "speedup": self.speedup,
            "macs_ratio": self.macs_ratio,
            "efficiency": self.efficiency,
        }


@dataclass(frozen=True)
class ModelSpeed:
    """A whole student beside its teacher.

    Args:
        batch_size, threads, device, dtype, channels_last: what was run, and how.
        speed: the two times.
    """

    batch_size: int
    threads: int
    device: str
    dtype: str
    channels_last: bool
    speed: Speed

    def as_json(self) -> dict[str, Any]:
        """A row of the contract (design 4.1), and more."""
        about = {name: getattr(self, name) for name in ("batch_size", "threads", "device", "dtype", "channels_last")}
        return {**about, **self.speed.as_json("teacher", "student")}


@dataclass(frozen=True)
class LayerSpeed:
    """A factored layer beside the dense one that it stands in for.

    Args:
        name: dotted path.
        rank: of the layer.
        batch_size: of the model's input.
        input_size: shape of the layer's own input.
        speed: the two times.
    """

    name: str
    rank: int
    batch_size: int
    input_size: tuple[int, ...]
    speed: Speed

    @property
    def slower(self) -> bool:
        return self.speed.speedup < 1.0

    def as_json(self) -> dict[str, Any]:
        """A row of ``layers``."""
        about = {"name": self.name, "rank": self.rank, "batch_size": self.batch_size}
        times = self.speed.as_json("dense", "low_rank")
        return {**about, "input_size": list(self.input_size), **times, "slower": self.slower}


def dense_twin(student: Student) -> nn.Module:
    """The student multiplied out: its teacher's layers, and so its teacher's time. Convolutions that standardise their
    weight become plain ones, which are a little faster.

    Raises:
        BenchmarkError: no layer is factored, so the student is its own twin.
    """
    if not student.ranks:
        raise BenchmarkError(
            "received a student without factored layers; expected one that differs from its dense twin; compare it "
            "with another model (--against MODEL)"
        )
    return student.to_dense()


def compare_models(
    teacher: nn.Module,
    student: nn.Module,
    example: Float[Tensor, "b ..."],
    settings: Settings | None = None,
    *,
    clock: Clock = time.perf_counter,
) -> ModelSpeed:
    """Time both models on one batch. Neither is modified.

    Args:
        teacher, student: on the device and in the dtype of ``example``.
        example: a batch as the models take it.
        settings: how to measure; ``None``: the defaults.
        clock: seconds, as `time.perf_counter`.

    Raises:
        BenchmarkError: the two are one model, or ``channels_last`` without images. ModelError: see `inspect`.

    Example:
        >>> compare_models(student.to_dense(), student, torch.randn(8, 3, 224, 224)).speed.speedup  # doctest: +SKIP
    """
    if teacher is student:
        raise BenchmarkError("received one model twice; expected a teacher and its student; pass another teacher")
    settings = settings or Settings()
    macs = [inspect(model, example[:1]).macs for model in (teacher, student)]
    ratio = macs[0] / macs[1] if macs[1] else math.nan
    batch = _batch_laid_out(example, settings)
    models = [_laid_out(model, settings) for model in (teacher, student)]
    with threads(settings.threads) as count, evaluating(models[0]), evaluating(models[1]):
        speed = _timed(models, batch, settings.seconds, ratio, clock)
    dtype = str(example.dtype).removeprefix("torch.")
    return ModelSpeed(len(example), count, str(example.device), dtype, settings.channels_last, speed)


def compare_layers(
    student: nn.Module, example: Float[Tensor, "b ..."], settings: Settings | None = None
) -> list[LayerSpeed]:
    """Time each factored layer and the dense one it stands in for, alone, on noise of the shape and the memory layout
    that the layer sees in its first call of a forward pass; each for a fifth of ``settings.seconds``.

    Arguments and errors as in `compare_models`.
    """
    settings = settings or Settings()
    batch = _batch_laid_out(example, settings)
    model, rows = _laid_out(network_of(student), settings), []
    generator = torch.Generator(example.device).manual_seed(0)
    with threads(settings.threads), evaluating(model):
        for name, seen in _inputs(model, batch).items():
            layer = low_rank_layers(model)[name]
            dense = _laid_out(layer.to_dense(), settings)
            noise = torch.empty_like(seen, device=example.device).normal_(generator=generator)
            # Not every factor runs at the positions of the output.
            ratio = inspect(dense, noise).macs / inspect(nn.Sequential(*layer), noise).macs
            speed = _timed((dense, layer), noise, LAYER_SHARE * settings.seconds, ratio)
            rows.append(LayerSpeed(name, layer.rank, len(example), tuple(seen.shape), speed))
    return rows


def _timed(
    models: Sequence[nn.Module], batch: Tensor, seconds: float, ratio: float, clock: Clock = time.perf_counter
) -> Speed:
    with torch.inference_mode():
        calls = [lambda model=model: model(batch) for model in models]
        dense, student = interleaved(calls, seconds, wait=waiting(batch.device), clock=clock)
    return Speed(dense, student, ratio)


def _laid_out(model: nn.Module, settings: Settings) -> nn.Module:
    """The model itself, or a copy in the other memory layout."""
    if not settings.channels_last:
        return model
    return copy.deepcopy(model).to(memory_format=torch.channels_last)


def _batch_laid_out(batch: Tensor, settings: Settings) -> Tensor:
    if not settings.channels_last:
        return batch
    if batch.ndim != 4:
        raise BenchmarkError(
            f"received channels_last with inputs of {list(batch.shape)}; expected images [b, c, h, w]; leave it out"
        )
    return batch.contiguous(memory_format=torch.channels_last)


def _inputs(model: nn.Module, batch: Tensor) -> Mapping[str, Tensor]:
    """What each factored layer receives first, without the values: a tensor of the meta device has the strides too."""
    seen: dict[str, Tensor] = {}

    def noting(name: str) -> Callable[..., None]:
        def note(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            seen.setdefault(name, torch.empty_like(first_argument(inputs, named), device="meta"))

        return note

    layers = low_rank_layers(model).items()
    handles = (layer.register_forward_pre_hook(noting(name), with_kwargs=True) for name, layer in layers)
    with hooked(handles), torch.inference_mode():
        model(batch)
    return seen
