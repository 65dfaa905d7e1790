"""What each layer costs in time on this machine: dense, and in every form worth having.

Multiply-accumulates are a poor guide to time: a convolution with 48 channels can take as long as one with 64, and a
thin layer is limited by memory. So forms are measured, at ranks that kernels like (multiples of `STEP`), and only
those that beat the dense layer are offered to the allocation. The dense layers are timed inside the model, where caches
are as they will be; a form is timed beside its dense layer in turns, and the ratio carries over.

Ratios are kept in a file for each machine, because they cost a minute to take.
"""

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hypercompress.errors import ModelError
from hypercompress.kinds import low_rank_like
from hypercompress.running.calling import ForwardFn, Progress, call_model, device_of, evaluating, first_argument
from hypercompress.running.hooks import hooked
from hypercompress.running.timing import interleaved, waiting
from hypercompress.specs import COUNTED, LayerSpec, Measured, ModelSpec, Status

STEP = 16
SIDES = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)  # tried on both sides of a kernel
MARGIN = 0.97  # a form that saves less than this is no faster, within what can be measured
PASSES = 15  # of the whole model, for the time of each layer inside it
SECONDS = 0.02  # for each form and as much for its dense layer
MOST = 0.9  # multiply-accumulates of a form as a share of the dense layer's: above it nothing is gained
UNTIMED = "does not run in the batch that was timed"


def measure_latency(
    model: nn.Module,
    spec: ModelSpec,
    example: Any,
    *,
    forward_fn: ForwardFn | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> ModelSpec:
    """``spec`` with the time of the model, of each candidate layer, and of the forms that are faster.

    A layer that the batch does not reach, as an expert of a mixture, has no time and stays dense.

    Args:
        model: the teacher, on the device that counts, with the threads that count.
        example: one batch of the size that counts.
        cache: file of measured ratios; default `default_cache`.
        progress: called with a phase's name, the number of layers done and the last one's name.

    Raises:
        ModelError: the model takes no measurable time.
    """
    forward_fn, cache = forward_fn or call_model, cache or default_cache()
    wait = waiting(device_of(model))
    with evaluating(model), torch.no_grad():
        total, times, inputs = _inside(model, spec, lambda: forward_fn(model, example), wait)
    if total <= 0:
        raise ModelError("received a model whose forward pass takes no time; expected one that computes something")
    known = _read(cache)
    layers = []
    for place, layer in enumerate(spec.layers):
        measured = None
        if layer.name in times:
            module, x = model.get_submodule(layer.name), inputs[layer.name]
            key = _key(module, x)
            if key not in known:
                known[key] = _ratios(layer, module, x, wait)
                _write(cache, known)
            dense = max(1, round(times[layer.name]))
            faster = [(r, q, ratio) for r, q, ratio in known[key] if ratio < MARGIN and _fits(layer, r, q)]
            forms = tuple((r, q, max(1, round(ratio * dense))) for r, q, ratio in faster)
            measured = Measured(dense, tuple(form for form in forms if form[2] < dense))
        elif layer.status is Status.FACTORED:
            layer = replace(layer, status=Status.KEPT, reason=UNTIMED)  # noqa: PLW2901
        layers.append(replace(layer, measured=measured))
        if progress is not None:
            progress("latency", place + 1, layer.name)
    inside = sum(layer.measured.dense for layer in layers if layer.measured is not None)
    return replace(spec, layers=tuple(layers), latency=max(round(total), inside))


def times_of(
    teacher: nn.Module, student: nn.Module, example: Any, forward_fn: ForwardFn | None = None, seconds: float = 0.5
) -> tuple[float, float]:
    """Milliseconds of a forward pass of each, timed in turns; the least of all blocks."""
    run, wait = forward_fn or call_model, waiting(device_of(teacher))
    with evaluating(teacher), evaluating(student), torch.no_grad():
        found = interleaved([lambda: run(teacher, example), lambda: run(student, example)], seconds, wait=wait)
    dense, ours = (min(timing.blocks) for timing in found)
    return dense, ours


def _inside(
    model: nn.Module, spec: ModelSpec, run: Callable[[], object], wait: Callable[[], None]
) -> tuple[float, dict[str, float], dict[str, Tensor]]:
    """Nanoseconds of a pass, and of each candidate layer inside it; and what each reads."""
    inputs: dict[str, Tensor] = {}
    begun: dict[str, float] = {}
    taken: dict[str, list[float]] = {layer.name: [] for layer in spec.candidates}

    def before(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            inputs.setdefault(name, first_argument(given, named).detach().clone())
            wait()
            begun[name] = time.perf_counter()

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            wait()
            taken[name].append(time.perf_counter() - begun[name])

        return hook

    whole = 1e6 * min(interleaved([run], PASSES * 0.01, wait=wait)[0].blocks)
    handles = []
    for layer in spec.candidates:
        for module in map(model.get_submodule, layer.paths):
            hooks = before(layer.name), after(layer.name)
            handles += [module.register_forward_pre_hook(hooks[0], with_kwargs=True)]
            handles += [module.register_forward_hook(hooks[1])]
    with hooked(handles):
        for _ in range(PASSES):
            run()
    # The least of the passes: whatever else the machine does only adds. Several calls in one pass cost their sum.
    reached = {name: t for name, t in taken.items() if len(t) >= PASSES}
    return whole, {name: 1e9 * min(map(sum, batched(t, len(t) // PASSES))) for name, t in reached.items()}, inputs


def batched(values: Sequence[float], size: int) -> list[Sequence[float]]:
    """Equal parts."""
    return [values[i : i + size] for i in range(0, len(values), size)]


def _forms(layer: LayerSpec) -> Iterator[tuple[int, int]]:
    """Ranks and input ranks (0: none) to try."""
    step = max(1, STEP // layer.groups)  # kernels see the channels of all groups
    ranks = sorted({*range(step, layer.max_rank + 1, step), *((layer.max_rank,) if layer.max_rank < step else ())})
    yield from ((rank, 0) for rank in ranks if rank <= 8 * step or rank % (4 * step) == 0)
    if layer.projects:
        for q in (q for q in SIDES if q < layer.channels):
            for r in (r for r in SIDES if r < layer.out):
                if all(layer.cost(unit, r, q) < MOST * layer.dense_cost(unit) for unit in COUNTED):
                    yield r, q


def _fits(layer: LayerSpec, rank: int, inner: int) -> bool:
    """Whether the layer has such a form: a cache holds what was written into it."""
    if rank < 1 or inner < 0:
        return False
    if inner:
        return layer.projects and inner < layer.channels and rank <= layer.full_rank
    return rank <= layer.max_rank


def _ratios(layer: LayerSpec, module: nn.Module, x: Tensor, wait: Callable[[], None]) -> list[tuple[int, int, float]]:
    """Time of each form as a share of the dense layer's, one beside the other."""
    found = []
    with torch.no_grad():
        for rank, inner in _forms(layer):
            form = low_rank_like(module, rank, inner or None).eval()
            dense, ours = interleaved([lambda: module(x), lambda form=form: form(x)], SECONDS, wait=wait)  # type: ignore[misc]
            found.append((rank, inner, min(ours.blocks) / min(dense.blocks)))
    return found


def default_cache() -> Path:
    """``latency.json`` in the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(root) / "hypercompress" / "latency.json"


def _key(module: nn.Module, x: Tensor) -> str:
    """A layer's class and geometry, its input, and all that its time depends on besides."""
    device = torch.cuda.get_device_name(x.device) if x.device.type == "cuda" else platform.machine()
    shapes = [(name, tuple(parameter.shape)) for name, parameter in module.named_parameters()]
    parts = (
        type(module).__module__,
        type(module).__qualname__,
        repr(module),
        shapes,  # not every class prints them
        tuple(x.shape),
        str(x.dtype),
        x.is_contiguous(),
        device,
        platform.node(),
        torch.get_num_threads(),
        torch.__version__,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


def _read(path: Path) -> dict[str, list[tuple[int, int, float]]]:
    """What was measured before; a file that cannot be read is as good as none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {key: [(int(r), int(q), float(t)) for r, q, t in rows] for key, rows in found.items()}
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return {}


def _write(path: Path, known: dict[str, list[tuple[int, int, float]]]) -> None:
    """The whole file in one step. A cache that cannot be written costs time, not the result."""
    draft = path.with_suffix(f".{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(known), encoding="utf-8")
        draft.replace(path)
    except OSError:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
