"""Three guarded choices, one after another: refit or not, the hypernetwork's strength, new norm moments or not."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from hypercompress.calibration import CalibrationSplit, join
from hypercompress.calling import ForwardFn, batch_size
from hypercompress.fidelity import reestimate_norms
from hypercompress.generator import HypernetGenerator
from hypercompress.guard import STRENGTHS, choose
from hypercompress.prepared import Plan
from hypercompress.reconstruction import reconstruct
from hypercompress.specs import Budget, Finishing, Generation, ModelSpec, Refit
from hypercompress.student import Student

FEW_STRENGTHS = (0.0, 0.5, 1.0)  # where each costs a regression of every layer
LARGEST_OUTPUT = 2**26  # elements of one layer's output during reconstruction: 256 MiB in float32


def has_batch_norm(model: nn.Module) -> bool:
    """Whether there are running moments that could be estimated again."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats for m in model.modules())


def refit_batch(spec: ModelSpec, split: CalibrationSplit) -> Any:
    """The calibration samples that students are refitted on: as many as the largest output allows."""
    largest = max((layer.positions * layer.out for layer in spec.candidates), default=1)
    return join(split.statistics, max(2, LARGEST_OUTPUT // largest))


def guarded(
    plan: Plan,
    budget: Budget,
    built: Callable[[Generation], Student],
    forward_fn: ForwardFn | None,
    answer: ForwardFn,
    *,
    refit: bool,
    norms: bool,
    both: bool = True,
) -> tuple[Generation, Student, Finishing]:
    """What is used of a generator's proposals, the student, and what was done to it.

    Args:
        plan: with calibration batches.
        built: makes a student of a generation.
        answer: how models are run where they are compared.
        refit, norms: whether that choice is open at all.
        both: whether both factors may be refitted; else the output factor alone.
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
    if refit:
        batch = refit_batch(spec, split)

        def reconstructed(generation: Generation, factors: Refit) -> Student:
            student = built(generation)
            if factors is not Refit.NONE:
                both = factors is Refit.BOTH
                layers = reconstruct(teacher, student, spec, sketches, batch, forward_fn, both=both)
                student.report = {"refitted": layers}
            return student

        forms = [form for form in Refit if both or form is not Refit.BOTH]
        index, student = best([lambda form=form: reconstructed(options[0], form) for form in forms])  # type: ignore[misc]
        refitted = forms[index]
        make = partial(reconstructed, factors=refitted)
    else:
        student = built(options[0])
    chosen = 0
    if isinstance(generator, HypernetGenerator):
        first = student  # of strength 0, whatever follows
        options = generator.options(
            spec,
            sketches,
            budget,
            FEW_STRENGTHS if refitted is Refit.BOTH else STRENGTHS,
            refit=refitted is not Refit.NONE,
        )
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
    finishing = Finishing(refitted, "re-estimated" if renewed else "kept", student.report.get("refitted", {}))
    return options[chosen], student, finishing
