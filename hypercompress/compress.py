"""The facade: a teacher and a budget in, a student out."""

import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from hypercompress.alone import alone
from hypercompress.architecture import Architecture, architecture_of
from hypercompress.choices import guarded
from hypercompress.errors import GeneratorError
from hypercompress.final_fit import fit_to_all
from hypercompress.generator import Generator, HypernetGenerator
from hypercompress.guard import Judge
from hypercompress.inspection import require_finite
from hypercompress.packed.fused import warn_of_fusion
from hypercompress.preparation import Plan, Wanted, prepare
from hypercompress.reconstruction import refit_batch
from hypercompress.report import (
    BEFORE_FINAL_FIT,
    bytes_of,
    make_report,
    of_source,
    params_of,
    read_before,
    warn_if_larger,
)
from hypercompress.running.calling import ForwardFn, Progress, keeping_random_state
from hypercompress.running.copying import as_written
from hypercompress.running.outputs import NUMBERS
from hypercompress.running.renormalization import moments_of, put_back
from hypercompress.running.wholes import seed_of
from hypercompress.search import search as search_ranks
from hypercompress.specs import Budget, Finishing, Generation, Refit, Unit, require_budget
from hypercompress.student import Student, build_student
from hypercompress.targeting import report_times, targeted

# What to do about a student whose weights are not finite.
OVERFLOWED = "pass more or other images, choose generator 'svd', or compress in float32, and please report it"

SEARCHED = ("hypernet", "kfac")  # generators whose start is `kfac`


@alone
def compress(  # noqa: PLR0913  (the facade: each argument has a default)
    teacher: nn.Module,
    budget: Budget,
    data: Iterable[Any] | None = None,
    generator: str | Path | Generator = "auto",
    *,
    images: int | None = 1024,
    example: Any = None,
    forward_fn: ForwardFn | None = None,
    architecture: Architecture | None = None,
    refit: bool = True,
    norms: bool = True,
    final_fit: bool = True,
    renormalize: bool = False,
    steady: bool = False,
    fast: bool = False,
    latency_batch: int = 1,
    search: float = 0.0,
    strict: bool = False,
    outputs: str = "auto",
    seed: int = 0,
    progress: Progress | None = None,
) -> Student:
    """Generate a compact student of ``teacher``; no gradient step is taken.

    One thread of a process compresses or adapts at a time; others wait, as do those that load a student, call
    `Student.to_dense`, or read a checkpoint by its path. No other thread may run or change the teacher: it is in
    evaluation mode, with hooks, until this returns, and stays so in a process that is forked meanwhile.

    Args:
        teacher: any module; not modified, but for plain attributes that its own forward changes. A `Student` counts as
            the dense network that its factors make, of which the budget is a share (a warning says if the result is
            larger), a compiled model as it was before, and one in `DataParallel` or `DistributedDataParallel` as the
            model inside, which is what ``forward_fn`` gets.
        budget: share of the teacher's parameters, multiply-accumulates or time, met from below.
        data: calibration batches (tensors, tuples or dicts), without ``forward_fn`` cast to the type of the parameters;
            labels ``(images, labels)`` serve the top-1 in the report alone, and show batches that are sorted by class,
            whose images are then shuffled: shuffle others yourself. ``None``: with ``auto`` and without ``forward_fn``
            a model that reads images (its own size, or ``example``, says so) is calibrated on noise, as if it were
            passed with ``renormalize``; anything else reads the weights alone.
        images: samples at most that are read, and kept in memory, of a loader or whatever else makes its batches one by
            one; ``None``: all. A list or tuple of batches, which are there already, is read whole.
        generator: ``auto`` (the released hypernetwork; without data `kfac` on noise, or ``svd``), ``hypernet``,
            ``svd``, ``whitened``, ``kfac``, ``prior``, a folder of a meta-trained hypernetwork, or any `Generator`.
        example: one batch to inspect the model with, cast as ``data`` is; needed only without data for models that are
            not timm's.
        forward_fn: ``(model, batch) -> tensor`` for batches that are not passed as they are. It gets the teacher, a
            copy of it, or one with factored layers in place (of a student ``student.model``).
        architecture: how to rebuild the model, if known; else a timm model is recognised.
        refit: with data, reconstruct the layers' outputs one after another (`reconstruction/`) if held-out images
            say that it helps.
        norms: with data, give BatchNorms other moments: of a refitted student those of their own inputs, the function
            as it was (`running/norms.py`); else new ones if held-out images say that it helps.
        final_fit: with fewer than 1,024 images and a budget of parameters or multiply-accumulates, make the chosen
            student once more, of all images (`final_fit.py`). The fidelity in the report is that of the student before
            it, which had not seen the images that it was measured on.
        renormalize: the images are not of the kind that the model was trained on, noise for instance: measure, refit
            and judge with a copy of it whose BatchNorms have the moments of these images, and put its own back in the
            end (`running/renormalization.py`). ``auto`` is `kfac` then, and no KL is predicted, nor fidelity reported.
            A model without BatchNorm is measured as it is.
        steady: with few images, of a model with BatchNorms: mix the statistics of noise into theirs, weighing as much
            as eight images (`curvature/steadying.py`), which takes as long as a generation without data.
        fast: time the forms of every layer on this machine, and use only those that are faster than the dense layer; a
            latency budget always does.
        latency_batch: samples of the batch that is timed.
        search: seconds to look for better ranks of the `kfac` student by trying (`search.py`), instead of asking a
            hypernetwork; with data, at a budget of parameters or multiply-accumulates.
        outputs: what the model's are: ``numbers``, as of a regression or of several labels at once; ``classes``, logits
            of which only differences count, where they have a class axis (``[b, k]`` has); ``auto``: numbers if
            ``data`` are ``(images, targets)`` with targets of the outputs' shape, real, whole or bools, that are no
            probabilities (samples whose targets are all zero say nothing), or if a timm model has no head and no
            labels ``[b]`` of whole numbers name classes. Whole labels of positions say which axis is that of classes.
        strict: refuse a model with a layer whose status is ``unsupported``, instead of leaving it dense.
        seed: of everything that is drawn.
        progress: called with a phase's name, a count of samples or layers and, of layers, a name.

    Raises:
        BenchmarkError, BudgetError, DataError, GeneratorError, ModelError, NonFiniteError: see their docstrings. What
            cannot be had of the teacher is refused before anything is measured, or, where forms are timed, right after.

    Example:
        >>> student = compress(teacher, Budget(params=0.4), data=loader)  # doctest: +SKIP
    """
    start, teacher = time.perf_counter(), as_written(teacher)
    require_budget(budget)
    seed = seed_of(seed)
    if search and data is None:
        raise GeneratorError(
            f"received a search of {search:g} seconds and no data; expected images to judge by; pass data"
        )
    source, size = (of_source(teacher.report), params_of(teacher)) if isinstance(teacher, Student) else ({}, None)
    reads = read_before(teacher.report if isinstance(teacher, Student) else {}, outputs, forward_fn)
    with keeping_random_state(teacher):
        if isinstance(teacher, Student):
            architecture, teacher = architecture or teacher.architecture, teacher.to_dense()
        plan = prepare(
            teacher,
            data,
            generator,
            images=images,
            example=example,
            forward_fn=forward_fn,
            latency_batch=latency_batch if fast or budget.unit is Unit.LATENCY else None,
            renormalize=renormalize,
            steady=steady,
            wanted=Wanted(budget, strict),
            **reads,
            seed=seed,
            progress=progress,
        )
        if plan.split is not None:
            warn_of_fusion(plan.original, plan.teacher, plan.split.confirm[0], plan.run)
        plan, tries = searched(plan, budget, search, refit=refit, seed=seed, progress=progress)
        student = finish(
            plan, budget, architecture=architecture, refit=refit, norms=norms, final_fit=final_fit, start=start
        )
    if tries is not None:
        student.report["search"] = {"seconds": float(search), "tries": tries}
    student.report |= source
    warn_if_larger(size, student.report)
    return student


def searched(
    plan: Plan,
    budget: Budget,
    seconds: float,
    *,
    refit: bool = True,
    seed: int = 0,
    progress: Progress | None = None,
) -> tuple[Plan, int | None]:
    """The plan with the generator that so many seconds of search found, and the number of tries; 0: the plan as it is.

    Raises:
        BudgetError: out of reach. GeneratorError: no data to judge by, or none of the model's own kind, a budget of
            latency, or a generator that is not searched.
    """
    if not seconds:
        return plan, None
    judged = plan.split is not None and not plan.unlike
    if not seconds > 0 or not judged or plan.generator.name not in SEARCHED or budget.unit is Unit.LATENCY:
        raise GeneratorError(
            f"received a search of {seconds:g} seconds with generator '{plan.generator.name}', a budget of "
            f"{budget.unit} and {'' if judged else 'unlike ' if plan.unlike else 'no '}data; expected more than 0 "
            f"seconds, {' or '.join(SEARCHED)}, params or macs, and data to judge by; change what differs"
        )
    assert plan.split is not None  # judged
    batch = refit_batch(plan.spec, plan.split) if refit else None
    found = search_ranks(plan, budget, seconds, refit=batch, seed=seed, progress=progress)
    return replace(plan, generator=found.generator), found.tries


def finish(
    plan: Plan,
    budget: Budget,
    *,
    architecture: Architecture | None = None,
    refit: bool = True,
    norms: bool = True,
    both: bool = True,
    final_fit: bool = False,
    start: float | None = None,
) -> Student:
    """The second half of `compress`, without its final fit unless asked: generate, guard, build, measure. One plan
    serves many budgets.

    Args:
        final_fit: see `compress`; programs that compare methods leave it out.
        both: refit both factors; else the output factor alone, for comparison.
    """
    start = time.perf_counter() if start is None else start
    teacher, spec, split = plan.teacher, plan.spec, plan.split
    architecture = architecture or architecture_of(plan.original)

    def built(generation: Generation) -> Student:
        return build_student(teacher, spec, generation, architecture)

    target, again = budget, False
    if budget.unit is Unit.LATENCY:
        ranking = _ranking(plan)
        budget = targeted(plan.original, spec, plan.sketches, ranking, budget, built, plan.timed, plan.run)
    if split is None:
        generation = plan.generator.generate(spec, plan.sketches, budget)
        student, finishing, fidelity = built(generation), Finishing(), None
    else:
        judge = Judge(teacher, split.select, split.confirm, plan.run)
        chosen = guarded(
            plan,
            budget,
            built,
            judge,
            forms=tuple(Refit) if refit and both else (Refit.NONE, Refit.OUTPUTS)[: 1 + refit],
            norms=norms,
            bend=target.unit is not Unit.LATENCY,  # whose budget was found by students of these ranks
        )
        fidelity = None if plan.unlike else judge.confirmed(chosen.student)
        if final_fit and target.unit is not Unit.LATENCY:
            plan, chosen, again = fit_to_all(plan, budget, built, judge, chosen, norms=norms)
        generation, student, finishing = chosen
    if plan.own:
        put_back(student.model, plan.own, moments_of(teacher))
    require_finite(student.model, OVERFLOWED)  # held-out images do not see all of them
    student.report = make_report(
        spec,
        target,
        generation,
        teacher_bytes=bytes_of(teacher),
        student_bytes=bytes_of(student),
        seconds=time.perf_counter() - start,
        fidelity=fidelity,
        kl_scale=plan.kl_scale.of(finishing.refitted),
        finishing=finishing,
    )
    student.report |= _of_plan(plan)
    if again:
        student.report |= {"final_fit": True, "measured_on": BEFORE_FINAL_FIT}
    if plan.timed is not None:
        report_times(student, plan.original, plan.timed, plan.run)
    return student


def _of_plan(plan: Plan) -> dict[str, Any]:
    """What a report says of how the teacher was measured, where that was not as usual."""
    told = {
        "predicted_kl": (plan.unlike, None),
        "renormalized": (plan.own, True),
        "outputs": (plan.numbers, NUMBERS),
        "class_axis": (plan.class_axis, plan.class_axis),
        "calibration": (plan.stand_in, f"noise:{plan.stand_in}"),
        "noise_share": (plan.noise_share, plan.noise_share),
    }
    return {key: value for key, (unusual, value) in told.items() if unusual}


def _ranking(plan: Plan) -> Generator:
    """The generator whose ranks the student will have: the guard goes on from a hypernetwork's start."""
    generator = plan.generator
    if plan.split is not None and isinstance(generator, HypernetGenerator):
        return generator.base(plan.spec, plan.sketches)
    return generator
