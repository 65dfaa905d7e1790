"""The facade: a teacher and a budget in, a student out."""

import copy
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hypercompress.architecture import Architecture, architecture_of
from hypercompress.calibration import CalibrationSplit, join, resized, split_batches
from hypercompress.calling import ForwardFn, Progress, batch_size
from hypercompress.errors import GeneratorError, ModelError
from hypercompress.fidelity import compare, reestimate_norms, remembering
from hypercompress.generator import Generator, HypernetGenerator, load_generator
from hypercompress.guard import STRENGTHS, choose
from hypercompress.inspection import inspect
from hypercompress.latency import measure_latency, times_of
from hypercompress.reconstruction import reconstruct
from hypercompress.report import bytes_of, make_report
from hypercompress.sketch import sketch
from hypercompress.specs import Budget, Generation, ModelSpec, Unit
from hypercompress.student import Student, build_student
from hypercompress.targeting import targeted
from hypercompress.unpacking import unpack

LARGEST_OUTPUT = 2**26  # elements of one layer's output during reconstruction: 256 MiB in float32


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


def has_batch_norm(model: nn.Module) -> bool:
    """Whether there are running moments that could be estimated again."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats for m in model.modules())


@dataclass(frozen=True)
class Plan:
    """All that is known before a student is built; `prepare` makes it, `finish` goes on from it.

    Args:
        original: the model as it was given.
        teacher: what is factored: a copy with its attention layers unpacked, or the model itself if it has none.
        spec, sketches: the teacher's.
        split: calibration batches, by use.
        generator: what makes the factors.
        timed: the batch that latency is measured with, if it was.
    """

    original: nn.Module
    teacher: nn.Module
    spec: ModelSpec
    sketches: dict[str, Any]
    split: CalibrationSplit | None
    generator: Generator
    timed: Any = None


def prepare(
    teacher: nn.Module,
    data: Iterable[Any] | None,
    generator: str | Path | Generator,
    *,
    example: Any = None,
    forward_fn: ForwardFn | None = None,
    latency_batch: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """Load the generator, unpack and inspect the teacher and measure the sketches: everything but the budget.

    Args:
        latency_batch: samples of the batch that is timed; ``None``: no times are measured. If they are, only forms that
            are faster than the dense layer are used.
    """
    chosen = generator
    if isinstance(chosen, (str, Path)):
        chosen = load_generator(chosen, has_data=data is not None, progress=progress)
    if data is None and getattr(chosen, "needs_data", False):
        raise GeneratorError(
            f"received no calibration data; expected some for generator '{chosen.name}', which weighs directions by "
            "measured curvature; pass data, or choose svd, prior or hypernet"
        )
    original, teacher = teacher, unpack(teacher)
    device = next(teacher.parameters()).device
    split = None if data is None else split_batches(data, device)
    example = example_of(teacher, split, example)
    spec, timed = inspect(teacher, example, forward_fn), None
    if latency_batch is not None:
        timed = resized(example, latency_batch)
        spec = measure_latency(teacher, spec, timed, forward_fn=forward_fn, progress=progress)
    batches = None if split is None else split.statistics
    sketches = sketch(teacher, spec, batches, forward_fn=forward_fn, seed=seed, progress=progress)
    return Plan(original, teacher, spec, sketches, split, chosen, timed)


def compress(  # noqa: PLR0913  (the facade: each argument has a default)
    teacher: nn.Module,
    budget: Budget,
    data: Iterable[Any] | None = None,
    generator: str | Path | Generator = "auto",
    *,
    example: Any = None,
    forward_fn: ForwardFn | None = None,
    architecture: Architecture | None = None,
    refit: bool = True,
    norms: bool = True,
    fast: bool = False,
    latency_batch: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> Student:
    """Generate a compact student of ``teacher``; no gradient step is taken.

    Args:
        teacher: any module; not modified.
        budget: share of the teacher's parameters, multiply-accumulates or time, met from below.
        data: calibration batches (tensors, tuples or dicts; labels are not read); ``None``: from weights alone.
        generator: ``auto`` (the released hypernetwork), ``hypernet``, ``svd``, ``whitened``, ``kfac``, ``prior``, a
            folder of a meta-trained hypernetwork, or any `Generator`.
        example: one batch to inspect the model with; needed only without data for models that are not timm's.
        forward_fn: ``(model, batch) -> tensor`` for batches that are not passed as they are.
        architecture: how to rebuild the model, if known; else a timm model is recognised.
        refit: with data, reconstruct the layers' outputs one after another (`reconstruction.py`) if held-out images
            say that it helps.
        norms: with data, re-estimate BatchNorm moments if held-out images say that it helps.
        fast: time the forms of every layer on this machine, and use only those that are faster than the dense layer; a
            latency budget always does.
        latency_batch: samples of the batch that is timed.
        seed: of everything that is drawn.
        progress: called with a phase's name, a count of samples or layers and, of layers, a name.

    Raises:
        BudgetError, DataError, GeneratorError, ModelError, NonFiniteError: see their docstrings.

    Example:
        >>> student = compress(teacher, Budget(params=0.4), data=loader)  # doctest: +SKIP
    """
    start = time.perf_counter()
    plan = prepare(
        teacher,
        data,
        generator,
        example=example,
        forward_fn=forward_fn,
        latency_batch=latency_batch if fast or budget.unit is Unit.LATENCY else None,
        seed=seed,
        progress=progress,
    )
    return finish(plan, budget, forward_fn=forward_fn, architecture=architecture, refit=refit, norms=norms, start=start)


def finish(
    plan: Plan,
    budget: Budget,
    *,
    forward_fn: ForwardFn | None = None,
    architecture: Architecture | None = None,
    refit: bool = True,
    norms: bool = True,
    start: float | None = None,
) -> Student:
    """The second half of `compress`: generate, guard, build, measure. One plan serves many budgets."""
    start = time.perf_counter() if start is None else start
    teacher, spec, split = plan.teacher, plan.spec, plan.split
    architecture = architecture or architecture_of(plan.original)

    def built(generation: Generation) -> Student:
        return build_student(teacher, spec, generation, architecture)

    answer = remembering(teacher, forward_fn)  # for comparing students, never for what hooks must see
    target = budget
    if budget.unit is Unit.LATENCY:
        budget = targeted(plan.original, spec, plan.sketches, plan.generator, budget, built, plan.timed, forward_fn)
    if split is None:
        generation = plan.generator.generate(spec, plan.sketches, budget)
        student, steps = built(generation), {"refit": False, "norms": "kept"}
    else:
        generation, student, steps = _guarded(plan, split, budget, built, forward_fn, answer, refit=refit, norms=norms)
    fidelity = None if split is None else compare(teacher, student, split.confirm, answer)
    report = make_report(
        spec,
        target,
        generation,
        teacher_bytes=bytes_of(teacher),
        student_bytes=bytes_of(student),
        seconds=time.perf_counter() - start,
        fidelity=fidelity,
    )
    student.report = {**report, **steps}
    if plan.timed is not None:
        _time(student, plan, forward_fn)
    return student


def _time(student: Student, plan: Plan, forward_fn: ForwardFn | None) -> None:
    """Put what the student really takes into its report."""
    dense, ours = times_of(plan.original, student, plan.timed, forward_fn)
    if student.report["budget"]["unit"] == Unit.LATENCY:
        student.report["budget"]["achieved"] = ours / dense
    student.report["latency"] = {
        "teacher_ms": dense,
        "student_ms": ours,
        "batch_size": batch_size(plan.timed),
        "threads": torch.get_num_threads(),
        "device": str(next(plan.teacher.parameters()).device),
    }


def refit_batch(spec: ModelSpec, split: CalibrationSplit) -> Any:
    """The calibration samples that students are refitted on: as many as the largest output allows."""
    largest = max((layer.positions * layer.out for layer in spec.candidates), default=1)
    return join(split.statistics, max(2, LARGEST_OUTPUT // largest))


def _guarded(
    plan: Plan,
    split: CalibrationSplit,
    budget: Budget,
    built: Callable[[Generation], Student],
    forward_fn: ForwardFn | None,
    answer: ForwardFn,
    *,
    refit: bool,
    norms: bool,
) -> tuple[Generation, Student, dict[str, Any]]:
    """Three guarded choices, one after another: refit or not, the hypernetwork's strength, new norm moments or not."""
    teacher, spec, generator = plan.teacher, plan.spec, plan.generator
    if isinstance(generator, HypernetGenerator):
        options = generator.options(spec, plan.sketches, budget, STRENGTHS[:1])
    else:
        options = [generator.generate(spec, plan.sketches, budget)]

    def best(candidates: list[Callable[[], Student]]) -> tuple[int, Student]:
        return choose(teacher, candidates, split.select, split.confirm, answer)

    make, refitted = built, 0
    if refit:
        batch = refit_batch(spec, split)

        def reconstructed(generation: Generation) -> Student:
            student = built(generation)
            reconstruct(teacher, student, spec, plan.sketches, batch, forward_fn)
            return student

        refitted, student = best([lambda: built(options[0]), lambda: reconstructed(options[0])])
        make = reconstructed if refitted else built
    else:
        student = built(options[0])
    chosen = 0
    if isinstance(generator, HypernetGenerator):
        options = generator.options(spec, plan.sketches, budget, STRENGTHS, refit=bool(refitted))
        chosen, student = best([lambda g=option: make(g) for option in options])  # type: ignore[misc]
    renewed = 0
    if norms and has_batch_norm(student) and any(batch_size(b) > 1 for b in split.statistics):
        kept = student

        def fresh() -> Student:
            candidate = copy.deepcopy(kept)
            reestimate_norms(candidate, split.statistics, forward_fn)
            return candidate

        renewed, student = best([lambda: kept, fresh])
    steps = {"refit": bool(refitted), "norms": "re-estimated" if renewed else "kept"}
    return options[chosen], student, steps
