"""The facade: a teacher and a budget in, a student out."""

import copy
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hypercompress.architecture import Architecture, architecture_of
from hypercompress.curvature import Progress
from hypercompress.errors import DataError, GeneratorError, ModelError
from hypercompress.fidelity import compare, reestimate_norms
from hypercompress.generator import Generator, HypernetGenerator, load_generator
from hypercompress.guard import STRENGTHS, choose
from hypercompress.inspection import ForwardFn, batch_size, inspect
from hypercompress.report import make_report
from hypercompress.sketch import sketch
from hypercompress.specs import Budget, Generation, ModelSpec
from hypercompress.student import Student, build_student

HELD_OUT_SHARE = 8  # one batch in eight selects, one confirms; the others make the statistics


@dataclass(frozen=True)
class CalibrationSplit:
    """Calibration batches by use: statistics, selection and confirmation never share an image."""

    statistics: Sequence[Any]
    select: Sequence[Any]
    confirm: Sequence[Any]


def split_batches(data: Iterable[Any], device: torch.device) -> CalibrationSplit:
    """Every eighth batch selects and the one after it confirms; of fewer than three batches each is cut in three.

    Raises:
        DataError: no batch, or a single one of fewer than three samples.
    """
    batches = [to_device(batch, device) for batch in data]
    if not batches:
        raise DataError("received calibration data without a single batch; expected at least one; check the loader")
    if len(batches) < 3:
        batches = list(chain.from_iterable(cut(batch, 3) for batch in batches))
    parts: dict[str, list[Any]] = {"statistics": [], "select": [], "confirm": []}
    for index, batch in enumerate(batches):
        place = index % max(3, min(HELD_OUT_SHARE, len(batches)))
        parts[("select", "confirm")[place] if place < 2 else "statistics"].append(batch)
    return CalibrationSplit(**parts)


def to_device(batch: Any, device: torch.device) -> Any:
    """The batch with its tensors on ``device``."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def cut(batch: Any, pieces: int) -> Iterator[Any]:
    """The batch along its first axis in ``pieces`` parts of at least one sample."""

    def part(value: Any, index: int) -> Any:
        if isinstance(value, Tensor):
            if len(value) < pieces:
                raise DataError(
                    f"received {len(value)} calibration samples in one batch; expected at least {pieces}; add images"
                )
            return value.tensor_split(pieces)[index]
        if isinstance(value, dict):
            return {key: part(item, index) for key, item in value.items()}
        if isinstance(value, (tuple, list)):
            return type(value)(part(item, index) for item in value)
        return value

    return (part(batch, index) for index in range(pieces))


def example_of(teacher: nn.Module, split: CalibrationSplit | None, example: Any) -> Any:
    """A batch for inspection: the one given, else one calibration batch, else noise of the model's own input size."""
    if example is not None:
        return example
    if split is not None:
        return next(iter(split.statistics))
    size = (getattr(teacher, "pretrained_cfg", None) or {}).get("input_size")
    if size is None:
        raise ModelError(
            "received a model without pretrained_cfg and no data; expected an example of its input; pass example="
        )
    first = next(teacher.parameters())
    return torch.randn(2, *size, generator=torch.Generator().manual_seed(0)).to(first.device, first.dtype)


def bytes_of(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, tied ones once."""
    tensors = {t.untyped_storage().data_ptr(): t for t in chain(model.parameters(), model.buffers())}
    return sum(t.numel() * t.element_size() for t in tensors.values())


def has_batch_norm(model: nn.Module) -> bool:
    """Whether there are running moments that could be estimated again."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats for m in model.modules())


@dataclass(frozen=True)
class Plan:
    """All that is known before a student is built; `plan` makes it, `compress` goes on from it."""

    teacher: nn.Module
    spec: ModelSpec
    sketches: dict[str, Any]
    split: CalibrationSplit | None
    generator: Generator


def prepare(
    teacher: nn.Module,
    data: Iterable[Any] | None,
    generator: str | Path | Generator,
    *,
    example: Any = None,
    forward_fn: ForwardFn | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """Inspect the teacher, load the generator and measure the sketches: everything but the budget."""
    chosen = load_generator(generator, has_data=data is not None) if isinstance(generator, (str, Path)) else generator
    if data is None and getattr(chosen, "needs_data", False):
        raise GeneratorError(
            f"received no calibration data; expected some for generator '{chosen.name}', which weighs directions by "
            "measured curvature; pass data, or choose svd, prior or hypernet"
        )
    device = next(teacher.parameters()).device
    split = None if data is None else split_batches(data, device)
    spec = inspect(teacher, example_of(teacher, split, example), forward_fn)
    batches = None if split is None else split.statistics
    sketches = sketch(teacher, spec, batches, forward_fn=forward_fn, seed=seed, progress=progress)
    return Plan(teacher, spec, sketches, split, chosen)


def compress(  # noqa: PLR0913  (the facade: each argument has a default)
    teacher: nn.Module,
    budget: Budget,
    data: Iterable[Any] | None = None,
    generator: str | Path | Generator = "auto",
    *,
    example: Any = None,
    forward_fn: ForwardFn | None = None,
    architecture: Architecture | None = None,
    norms: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> Student:
    """Generate a compact student of ``teacher``; nothing is trained.

    Args:
        teacher: any module; not modified.
        budget: share of the teacher's parameters or multiply-accumulates, met from below.
        data: calibration batches (tensors, tuples or dicts; labels are not read); ``None``: from weights alone.
        generator: ``auto`` (the released hypernetwork), ``hypernet``, ``svd``, ``whitened``, ``kfac``, ``prior``, a
            folder of a meta-trained hypernetwork, or any `Generator`.
        example: one batch to inspect the model with; needed only without data for models that are not timm's.
        forward_fn: ``(model, batch) -> tensor`` for batches that are not passed as they are.
        architecture: how to rebuild the model, if known; else a timm model is recognised.
        norms: with data, re-estimate BatchNorm moments if held-out images say that it helps.
        seed: of everything that is drawn.
        progress: called with a phase name and a count.

    Raises:
        BudgetError, DataError, GeneratorError, ModelError, NonFiniteError: see their docstrings.

    Example:
        >>> student = compress(teacher, Budget(params=0.4), data=loader)  # doctest: +SKIP
    """
    start = time.perf_counter()
    plan = prepare(teacher, data, generator, example=example, forward_fn=forward_fn, seed=seed, progress=progress)
    return finish(plan, budget, forward_fn=forward_fn, architecture=architecture, norms=norms, start=start)


def finish(
    plan: Plan,
    budget: Budget,
    *,
    forward_fn: ForwardFn | None = None,
    architecture: Architecture | None = None,
    norms: bool = True,
    start: float | None = None,
) -> Student:
    """The second half of `compress`: generate, guard, build, measure. One plan serves many budgets."""
    start = time.perf_counter() if start is None else start
    teacher, spec, split = plan.teacher, plan.spec, plan.split
    architecture = architecture or architecture_of(teacher)

    def built(generation: Generation) -> Student:
        return build_student(teacher, spec, generation, architecture)

    if isinstance(plan.generator, HypernetGenerator) and split is not None:
        options = plan.generator.options(spec, plan.sketches, budget, STRENGTHS)
        builders: list[Callable[[], nn.Module]] = [lambda g=g: built(g) for g in options]  # type: ignore[misc]
        generation = options[choose(teacher, builders, split.select, split.confirm, forward_fn)]
    else:
        generation = plan.generator.generate(spec, plan.sketches, budget)
    student, reestimated = built(generation), False
    statistics = () if split is None else split.statistics
    if norms and split is not None and has_batch_norm(student) and any(batch_size(b) > 1 for b in statistics):

        def fresh() -> nn.Module:
            candidate = copy.deepcopy(student)
            reestimate_norms(candidate, statistics, forward_fn)
            return candidate

        builders = [lambda: student, fresh]
        if choose(teacher, builders, split.select, split.confirm, forward_fn) == 1:
            student, reestimated = fresh(), True  # type: ignore[assignment]
    fidelity = None if split is None else compare(teacher, student, split.confirm, forward_fn)
    report = make_report(
        spec,
        budget,
        generation,
        teacher_bytes=bytes_of(teacher),
        student_bytes=bytes_of(student),
        seconds=time.perf_counter() - start,
        fidelity=fidelity,
    )
    student.report = {**report, "norms": "re-estimated" if reestimated else "kept"}
    return student
