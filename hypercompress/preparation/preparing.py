"""Everything before the budget: the generator loaded, the teacher unpacked, inspected and measured."""

import traceback
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from hypercompress.alone import alone
from hypercompress.curvature import UNREACHED, reached
from hypercompress.curvature.collapse import completed
from hypercompress.curvature.steadying import noise_share, steadied
from hypercompress.errors import BudgetError, DataError, GeneratorError, HypercompressError, warn
from hypercompress.fidelity import compare, remembering
from hypercompress.generator import AnalyticGenerator, Generator, load_generator
from hypercompress.generator.protocol import without_data
from hypercompress.inspection import inspect
from hypercompress.latency import measure_latency
from hypercompress.packed.replaceable import replaceable
from hypercompress.packed.unpackable import Apart, taken_apart
from hypercompress.preparation.example import dtype_of, example_of, wider
from hypercompress.preparation.given import require_given
from hypercompress.preparation.measuring import sketched
from hypercompress.preparation.plan import Plan
from hypercompress.preparation.reading import read_as
from hypercompress.preparation.rows import Rows, opening, uncut
from hypercompress.preparation.unpassed import warn_of_unpassed
from hypercompress.preparation.wanted import Wanted
from hypercompress.running.batches import resized
from hypercompress.running.calibration import CalibrationSplit, split_batches
from hypercompress.running.calling import ForwardFn, Progress, call_model, device_of, out_of_memory, taking
from hypercompress.running.copying import as_written
from hypercompress.running.nested import Uncut
from hypercompress.running.norms import remembering_norms
from hypercompress.running.outputs import as_read, require_reading
from hypercompress.running.renormalization import Moments, moments_of, renormalized
from hypercompress.running.wholes import seed_of, whole
from hypercompress.specs import ModelSpec
from hypercompress.student import network_of
from hypercompress.synthetic.stand_in import stand_in

ANYTHING = Wanted()
UNLIKE = 1.0  # share of the lost variance that is given back: more of it is lost of the model's own images


@alone
def prepare(  # noqa: PLR0913  (each has a default)
    teacher: nn.Module,
    data: Iterable[Any] | None,
    generator: str | Path | Generator,
    *,
    images: int | None = 1024,
    example: Any = None,
    forward_fn: ForwardFn | None = None,
    latency_batch: int | None = None,
    renormalize: bool = False,
    steady: bool = False,
    wanted: Wanted = ANYTHING,
    outputs: str = "auto",
    class_axis: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Plan:
    """Load the generator, unpack and inspect the teacher and measure the sketches: everything but the budget.

    Args:
        latency_batch: samples of the batch that is timed; ``None``: no times are measured. If they are, only forms that
            are faster than the dense layer are used.
        images, forward_fn, renormalize, steady, outputs: see `compress`.
        class_axis: of the outputs, where labels do not say it; ``None``: as is usual (`outputs.class_axis`).
        wanted: what cannot be had is refused before anything is measured.

    Without data ``auto`` is `kfac` on noise, of which `Plan.stand_in` tells; where that cannot be, it is ``svd``.
    """
    require_given(teacher, generator, latency_batch)
    require_reading(outputs)
    seed, images = seed_of(seed), None if images is None else whole("images", images, 1)
    _refuse(data is not None, renormalize, steady, forward_fn)
    if data is None and str(generator) == "auto" and not renormalize and forward_fn is None:
        options = {"example": example, "latency_batch": latency_batch, "outputs": outputs, "class_axis": class_axis}
        options |= {"seed": seed, "progress": progress}
        if (plan := _on_noise(teacher, wanted, **options)) is not None:
            return plan
    original = as_written(teacher)
    norms = remembering_norms(original) if renormalize else []
    chosen = _generator(generator, data is not None, unlike=renormalize, progress=progress)
    if norms and isinstance(chosen, AnalyticGenerator) and chosen.prior:
        raise GeneratorError(
            f"received generator '{chosen.name}' for a model that is renormalised to its data; expected one that does "
            "not read the BatchNorms' moments, which are those of the data then; pass no data, or choose kfac"
        )
    given = example is not None
    split, example = _batches(original, data, example, forward_fn, images=images)
    if latency_batch is not None and isinstance(example, Uncut):
        raise _untimed(example, latency_batch)
    noise = _steadying(original, example, seed) if steady else None
    numbers, axis = read_as(original, split, forward_fn, outputs, class_axis)
    run = as_read(_run(forward_fn, split, example), numbers=numbers, axis=axis)
    teacher, own, spec = _inspected(original, split, example, run, norms=bool(norms))
    if split is not None and not given and (more := wider(split, example, spec)) is not None:
        example = more
        teacher, own, spec = _inspected(original, split, example, run, norms=bool(norms))
    timed = None
    wanted.check(teacher, spec)
    if latency_batch is not None:
        timed = resized(example, latency_batch)
        spec = measure_latency(teacher, spec, timed, forward_fn=taking(run), progress=progress)
        wanted.check(teacher, spec)  # again: of what is left no form may be fast enough
    sketches = sketched(teacher, spec, split, run, seed=seed, progress=progress, made=renormalize)
    spec = spec if split is None else reached(spec, sketches)
    Wanted(strict=wanted.strict).check(teacher, spec)  # again: some layers turn out to be unsupported when they run
    plan = Plan(original, teacher, spec, sketches, split, chosen, run, timed)
    plan = replace(plan, unlike=renormalize, own=own, numbers=numbers, class_axis=axis)
    if noise is not None:
        plan = _steadied(plan, noise, seed, progress)
    if split is None:
        return plan
    return replace(plan, sketches=completed(spec, plan.sketches, split.samples, unlike=renormalize))


def _batches(
    original: nn.Module,
    data: Iterable[Any] | None,
    example: Any,
    forward_fn: ForwardFn | None,
    *,
    images: int | None,
) -> tuple[CalibrationSplit | None, Any]:
    """The batches, by use, and one for inspection; it is known which of them are cut."""
    device, dtype = device_of(original), dtype_of(original) if forward_fn is None else None
    known, split = Rows(original, forward_fn, device, dtype).known, None
    if data is not None:
        split = split_batches(data, device, dtype, passed=forward_fn is None, images=images, known=known)
        if forward_fn is None:
            warn_of_unpassed(original, split.statistics[0])
    given = example is not None
    example = example_of(original, split, example, as_it_is=forward_fn is not None)
    return split, next(known([example])) if given else example


def _untimed(example: Uncut, samples: int) -> DataError:
    return DataError(
        f"received a latency budget, or fast=True, with batches whose {example.samples} samples are not the rows of "
        f"their first tensor, so that none can be cut to {samples}; expected the samples along its first axis; pass a "
        "budget of parameters or MACs, or such batches and forward_fn=lambda model, batch: ... that moves the axis back"
    )


def _run(forward_fn: ForwardFn | None, split: CalibrationSplit | None, example: Any) -> ForwardFn:
    """How a plan runs models."""
    run = call_model if forward_fn is None else partial(_of_network, forward_fn)  # no closure: a plan can be pickled
    return opening(run) if isinstance(example, Uncut) or uncut(split) else run


def _of_network(forward_fn: ForwardFn, model: nn.Module, batch: Any) -> Tensor:
    """``forward_fn`` as the user wrote it for the teacher: of a student it gets the network inside."""
    return forward_fn(network_of(model), batch)


def _inspected(
    original: nn.Module, split: CalibrationSplit | None, example: Any, run: ForwardFn, *, norms: bool
) -> tuple[nn.Module, Moments, ModelSpec]:
    """What is factored, the moments that its students are given back, and its layers.

    Args:
        norms: whether it has others that are to take the moments of the data.
    """
    apart, own = taken_apart(original, example, run), None
    if norms and split is not None:
        own, seen = moments_of(apart.model), renormalized(apart.model, split.statistics, taking(run))
        apart = replace(apart, model=seen, output=None)
    return apart.model, own or {}, _replaceable(apart, example, run)


def _replaceable(apart: Apart, example: Any, forward_fn: ForwardFn | None = None) -> ModelSpec:
    """The layers of a teacher that is taken apart, and which of them can be replaced."""
    spec = apart.told(inspect(apart.model, example, taking(forward_fn)))
    return replaceable(apart.model, spec, example, forward_fn, apart.output)


def _refuse(has_data: bool, renormalize: bool, steady: bool, forward_fn: ForwardFn | None) -> None:
    """Raises DataError for what needs images, or images of the model's own kind that are passed as they are."""
    if renormalize and not has_data:
        raise DataError(
            "received renormalize=True without data; expected images whose moments the BatchNorms take; pass data, "
            "such as inversion.synthesize(model, input_size, steps=0), which is noise"
        )
    if steady and (not has_data or renormalize or forward_fn is not None):
        raise DataError(
            "received steady (--steady) without images of the model's own kind that are passed as they are; expected "
            "some, whose statistics noise steadies; leave it out"
        )


def _steadying(original: nn.Module, example: Any, seed: int) -> list[Tensor]:
    """Noise for a model with BatchNorms that reads images."""
    noise = stand_in(original, example, seed=seed)
    if noise is None or not remembering_norms(original):
        raise DataError(
            "received steady (--steady) for a model without BatchNorms that keep moments, or for batches that are no "
            "images; expected tensors [b, c, h, w] and norms that noise is fitted to; leave it out"
        )
    return noise


def _steadied(plan: Plan, noise: list[Tensor], seed: int, progress: Progress | None) -> Plan:
    """The plan with the statistics of noise mixed in; the progress of its phase is that of ``noise``."""
    assert plan.split is not None  # `_refuse`

    def told(_: str, done: int, at: str = "") -> None:
        if progress is not None:
            progress("noise", done, at)

    device, samples = device_of(plan.teacher), plan.split.samples
    split = split_batches(noise, device, dtype_of(plan.teacher))
    seen = renormalized(plan.teacher, split.statistics)
    found = sketched(seen, plan.spec, split, plan.run, seed=seed, progress=told, made=True)
    sketches = steadied(plan.sketches, found, samples)
    return replace(plan, sketches=sketches, noise_share=noise_share(samples))


def _generator(
    generator: str | Path | Generator, has_data: bool, *, unlike: bool, progress: Progress | None
) -> Generator:
    """The generator, loaded if it is a name; ``unlike``: for data of another kind than the model's own."""
    if isinstance(generator, (str, Path)):
        name = "kfac" if unlike and str(generator) == "auto" else generator  # the hypernetwork has learned from its own
        generator = load_generator(name, has_data=has_data, progress=progress)
        if unlike and isinstance(generator, AnalyticGenerator) and generator.spread:
            generator = replace(generator, spread=UNLIKE)
    if not has_data and getattr(generator, "needs_data", False):
        raise without_data(generator.name)
    return generator


def _of_autograd(error: Exception) -> bool:
    """Whether it was raised in a backward pass, which what the model did before it does not allow."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(str(frame.f_globals.get("__name__")).startswith("torch.autograd") for frame, _ in frames)


def _on_noise(teacher: nn.Module, wanted: Wanted, *, example: Any, seed: int, **options: Any) -> Plan | None:
    """The plan of a teacher measured on noise; ``None`` where it reads no images, or, with a warning, where that fails.

    The model reads images that its owner never passed, so what it raises then is no fault of the input.

    Raises:
        whatever is no fault of the noise either: lack of memory, and faults of this package.
    """
    original = as_written(teacher)
    noise = stand_in(original, example, seed=seed)
    if noise is None:
        return None
    seen = example_of(original, None, example)
    apart = taken_apart(original, seen)
    wanted.check(apart.model, _replaceable(apart, seen))  # faults that are not noise's
    try:
        some = Wanted(wanted.budget)  # noise may reach layers that it has no gradient for: not the model's fault
        plan = prepare(original, noise, "auto", example=example, renormalize=True, wanted=some, seed=seed, **options)
        assert plan.split is not None  # noise was given
        held_out = [*plan.split.select, *plan.split.confirm]  # the others were measured
        compare(plan.teacher, plan.teacher, held_out, remembering(plan.teacher, taking(plan.run)))
    except BudgetError:  # no form is fast enough, which no noise was asked about
        raise
    except (HypercompressError, RuntimeError) as error:
        if out_of_memory(error):
            error.add_note("It ran on noise, for want of images; generator 'svd' reads the weights alone")
            raise
        if not isinstance(error, HypercompressError) and not _of_autograd(error):
            raise
        why, made = " ".join(str(error.__cause__ or error).split()), None  # what the model said, without advice
    else:
        lost = [layer.name for layer in plan.spec.layers if layer.reason == UNREACHED]
        why, made = f"no gradient reaches {', '.join(lost)}", None if lost else plan
    if made is None:
        warn(f"noise cannot stand in for images: {why}. The weights alone are read")
        return None
    wanted.check(made.teacher, made.spec)
    return replace(made, stand_in=sum(map(len, noise)))
