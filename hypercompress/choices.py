"""Guarded choices, one after another: which factors are refitted, whether late layers get more of the budget, the
hypernetwork's strength, new norm moments or not.

A refit lets late layers make good what early ones lost, which the additive model behind the allocation does not know:
at hard budgets a refitted student is better with more rank in its late layers (LOG.md, 2026-11-26).
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from torch import nn

from hypercompress.calling import ForwardFn, batch_size
from hypercompress.fidelity import reestimate_norms
from hypercompress.generator import AnalyticGenerator, HypernetGenerator, by_depth, weighted
from hypercompress.guard import STRENGTHS, choose
from hypercompress.prepared import Plan
from hypercompress.reconstruction import reconstruct, refit_batch
from hypercompress.specs import Budget, Finishing, Generation, Refit
from hypercompress.student import Student

FEW_STRENGTHS = (0.0, 0.5, 1.0)  # where each costs a regression of every layer
TILTS = (2.0, 4.0)  # of the allocation; the second is tried if the first was better
HARD = 0.05  # nats predicted, below which a tilt does not help


def has_batch_norm(model: nn.Module) -> bool:
    """Whether there are running moments that could be estimated again."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats for m in model.modules())


def guarded(
    plan: Plan,
    budget: Budget,
    built: Callable[[Generation], Student],
    forward_fn: ForwardFn | None,
    answer: ForwardFn,
    *,
    forms: Sequence[Refit],
    norms: bool,
    bend: bool,
) -> tuple[Generation, Student, Finishing]:
    """What is used of a generator's proposals, the student, and what was done to it.

    Args:
        plan: with calibration batches.
        built: makes a student of a generation.
        answer: how models are run where they are compared.
        forms: of the refit, to choose from; the first is none.
        norms: whether new norm moments may be chosen.
        bend: whether the allocation may be tilted towards the layers that run last.
    """
    teacher, spec, sketches, generator, split = plan.teacher, plan.spec, plan.sketches, plan.generator, plan.split
    assert split is not None
    if isinstance(generator, HypernetGenerator):
        options = generator.options(spec, sketches, budget, STRENGTHS[:1])
    else:
        options = [generator.generate(spec, sketches, budget)]

    def best(candidates: list[Callable[[], Student]]) -> tuple[int, Student]:
        return choose(teacher, candidates, split.select, split.confirm, answer)

    make, refitted = built, Refit.NONE
    if len(forms) > 1:
        batch = refit_batch(spec, split)

        def reconstructed(generation: Generation, factors: Refit) -> Student:
            student = built(generation)
            if factors is not Refit.NONE:
                both = factors is Refit.BOTH
                layers = reconstruct(teacher, student, spec, sketches, batch, forward_fn, both=both)
                student.report = {"refitted": layers}
            return student

        index, student = best([lambda form=form: reconstructed(options[0], form) for form in forms])  # type: ignore[misc]
        refitted = forms[index]
        make = partial(reconstructed, factors=refitted)
    else:
        student = built(options[0])
    tilt = 0.0
    if bend and refitted is Refit.BOTH and (options[0].plan.predicted_kl or 0.0) > HARD:
        tilt, options[0], student = _bent(plan, budget, options[0], student, make, best)
    chosen = 0
    if isinstance(generator, HypernetGenerator):
        first = student  # of strength 0, whatever follows
        strengths = (FEW_STRENGTHS if refitted is Refit.BOTH else STRENGTHS)[1:]
        options += generator.options(spec, sketches, budget, strengths, refit=refitted is not Refit.NONE)
        others = [lambda g=option: make(g) for option in options[1:]]
        chosen, student = best([lambda: first, *others])
    renewed = 0
    if norms and has_batch_norm(student) and any(batch_size(b) > 1 for b in split.statistics):
        kept = student

        def fresh() -> Student:
            candidate = copy.deepcopy(kept)
            reestimate_norms(candidate, split.statistics, forward_fn)
            return candidate

        renewed, student = best([lambda: kept, fresh])
    finishing = Finishing(
        0.0 if chosen else tilt, refitted, "re-estimated" if renewed else "kept", student.report.get("refitted", {})
    )
    return options[chosen], student, finishing


def _bent(
    plan: Plan,
    budget: Budget,
    even: Generation,
    student: Student,
    make: Callable[[Generation], Student],
    best: Callable[[list[Callable[[], Student]]], tuple[int, Student]],
) -> tuple[float, Generation, Student]:
    """The tilt, generation and student that held-out images favour; those that are given if no other is better."""
    generator, tilt, generation = plan.generator, 0.0, even
    base = generator.base(plan.spec, plan.sketches) if isinstance(generator, HypernetGenerator) else generator
    if not isinstance(base, AnalyticGenerator) or not base.nats:
        return tilt, generation, student
    base = replace(base, known=base.directions(plan.spec, plan.sketches))
    for stronger in TILTS:
        found = weighted(base, by_depth(plan.spec, stronger)).generate(plan.spec, plan.sketches, budget)
        kept, bent = student, replace(found, generator=even.generator)
        index, student = best([lambda kept=kept: kept, lambda bent=bent: make(bent)])  # type: ignore[misc]
        if index == 0:
            break
        tilt, generation = stronger, bent
    return tilt, generation, student
