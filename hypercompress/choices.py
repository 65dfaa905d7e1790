"""Guarded choices, one after another: which factors are refitted, whether late layers get more of the budget, the
hypernetwork's strength, new norm moments or not.

A refit lets late layers make good what early ones lost, which the additive model behind the allocation does not know:
at hard budgets a refitted student is better with more rank in its late layers (LOG.md, 2026-11-26).
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, NamedTuple

from hypercompress.generator import AnalyticGenerator, HypernetGenerator, by_depth, weighted
from hypercompress.guard import STRENGTHS, Judge, choose
from hypercompress.kinds import LowRank, factors_of
from hypercompress.preparation import Plan
from hypercompress.reconstruction import reconstruct, refit_batch
from hypercompress.running.batches import of_one_layout
from hypercompress.running.memory import give_back
from hypercompress.running.nested import batch_size
from hypercompress.running.norms import rebase_norms, reestimate_norms, remembering_norms
from hypercompress.specs import Budget, Factors, Finishing, Generation, Refit
from hypercompress.student import Student

TILTS = (2.0, 4.0)  # of the allocation; the second is tried if the first was better
MANY = 256  # samples of one layout in the statistics, from which a refit of both factors that helps helps most (47 of
# 48; LOG.md)
HARD = 0.05  # nats: predicted, below which a tilt does not help; measured, below which new norm moments do not
RE_ESTIMATED = "re-estimated"
NORM_SAMPLES = 128  # from which norm moments are estimated; each has a row at every position


class Chosen(NamedTuple):
    """What is used of a generator's proposals, the student, and what was done to it."""

    generation: Generation
    student: Student
    finishing: Finishing


def guarded(
    plan: Plan,
    budget: Budget,
    built: Callable[[Generation], Student],
    judge: Judge,
    *,
    forms: Sequence[Refit],
    norms: bool,
    bend: bool,
) -> Chosen:
    """Choose by held-out images, one thing after another.

    Args:
        plan: with calibration batches.
        built: makes a student of a generation.
        judge: of the plan's held-out batches.
        forms: of the refit, to choose from; the first is none.
        norms: whether norms may get other moments.
        bend: whether other ranks than the first student's may be tried: late layers may get more of the budget, and a
            hypernetwork may allocate.
    """
    choices = _Choices(plan, budget, built, judge)
    choices.refit(forms)
    if bend:
        choices.tilt()
    choices.strength(bend=bend)
    if norms:
        choices.norms()
        choices.rebase()
    return Chosen(choices.generation, choices.student, choices.finishing)


def followed(
    plan: Plan, budget: Budget, built: Callable[[Generation], Student], judge: Judge, chosen: Chosen, *, norms: bool
) -> Chosen:
    """What the same choices make of another plan of the same teacher.

    Args:
        built, judge: see `guarded`.
        chosen: by it.
        norms: whether a refitted student's BatchNorms have other moments.
    """
    choices = _Choices(plan, budget, built, judge, chosen)
    choices.follow()
    if norms:
        choices.rebase()
    return Chosen(choices.generation, choices.student, choices.finishing)


def _first(batches: Sequence[Any], samples: int) -> Sequence[Any]:
    """The first batches that have so many samples together, or all."""
    before = accumulate(map(batch_size, batches), initial=0)
    return [batch for batch, count in zip(batches, before, strict=False) if count < samples]


class _Choices:
    """The student so far; each method tries others and keeps the better one."""

    def __init__(
        self,
        plan: Plan,
        budget: Budget,
        built: Callable[[Generation], Student],
        judge: Judge,
        chosen: Chosen | None = None,
    ) -> None:
        assert plan.split is not None
        self.plan, self.budget, self.built, self.judge = plan, budget, built, judge
        self.split, self.batch = plan.split, None
        self.finishing = Finishing() if chosen is None else chosen.finishing
        self.base: AnalyticGenerator | None = None  # whose allocation can be tilted
        generator = plan.generator
        if isinstance(generator, HypernetGenerator):
            base = generator.base(plan.spec, plan.sketches)
            self.base = base if base.nats else None
        elif isinstance(generator, AnalyticGenerator) and generator.nats:
            self.base = replace(generator, known=generator.directions(plan.spec, plan.sketches))
        generation = self._generated(STRENGTHS[0] if chosen is None else chosen.generation.strength)
        give_back()  # what decompositions in float64 have left
        self.student = built(generation)
        self.generation = _held_by(self.student, generation)

    def _generated(self, strength: float) -> Generation:
        """What the generator proposes at this strength, tilted and refitted as far as that is decided."""
        plan, generator = self.plan, self.plan.generator
        if isinstance(generator, HypernetGenerator) and (strength > 0 or not self.finishing.tilt):
            refit = self.finishing.refitted is not Refit.NONE
            return generator.options(plan.spec, plan.sketches, self.budget, [strength], refit=refit)[0]
        if self.finishing.tilt:
            return self._bent(self.finishing.tilt)
        return (self.base or generator).generate(plan.spec, plan.sketches, self.budget)

    def refit(self, forms: Sequence[Refit]) -> None:
        """The factors that are refitted, from here on of every student.

        With few images of a kind that is not the model's own nothing is: held-out images of the same kind cannot say
        whether that holds for others (EfficientNet-Lite0, LOG.md, 2026-11-28).
        """
        many = sum(map(batch_size, of_one_layout(self.split.statistics))) >= MANY  # others cannot be refitted on
        if len(forms) == 1 or (self.plan.unlike and not many):
            return
        self.batch = refit_batch(self.plan.spec, self.split)
        generation, refits = self.generation, list(forms[1:])
        for tried in [[form] for form in reversed(refits)] if many else [refits]:
            index = self._choose([lambda form=form: self._refitted(self.built(generation), form) for form in tried])  # type: ignore[misc]
            if index > 0:
                self.finishing = replace(self.finishing, refitted=tried[index - 1])
                break
        self.generation = _said(generation)

    def follow(self) -> None:
        """No choice: what was decided is done."""
        self.generation = _said(self.generation)
        if self.finishing.refitted is not Refit.NONE:
            self.batch = refit_batch(self.plan.spec, self.split)
            self._refitted(self.student, self.finishing.refitted)
            self.finishing = replace(self.finishing, layers=self.student.report["refitted"])
        if self.finishing.norms == RE_ESTIMATED:
            reestimate_norms(self.student, _first(self.split.statistics, NORM_SAMPLES), self.plan.run)

    def tilt(self) -> None:
        """How far the allocation leans towards the layers that run last."""
        hard = (self.generation.plan.predicted_kl or 0.0) > HARD
        if self.base is None or self.finishing.refitted is not Refit.BOTH or not hard:
            return
        for tilt in TILTS:
            student, generation = self._built(self._bent(tilt))
            if self._choose([lambda s=student: self._refitted(s, Refit.BOTH)]) == 0:  # type: ignore[misc]
                break
            self.generation, self.finishing = generation, replace(self.finishing, tilt=tilt)

    def strength(self, *, bend: bool) -> None:
        """How much of what a hypernetwork says is followed; unless ``bend`` none that would have other ranks."""
        generator, refitted = self.plan.generator, self.finishing.refitted
        if not isinstance(generator, HypernetGenerator):
            return
        spec, sketches, refit = self.plan.spec, self.plan.sketches, refitted is not Refit.NONE
        options = generator.options(spec, sketches, self.budget, STRENGTHS[1:], refit=refit)
        made = [self._built(option) for option in options if bend or _same_ranks(option, self.generation)]
        index = self._choose([lambda s=student: self._refitted(s, refitted) for student, _ in made])  # type: ignore[misc]
        if index > 0:
            self.generation, self.finishing = made[index - 1][1], replace(self.finishing, tilt=0.0)

    def norms(self) -> None:
        """Whether BatchNorm's moments are those of the student or the teacher's.

        A refitted student keeps the teacher's, which its layers were fitted to give: others, estimated from the few
        images at hand, were worse in all of 61 (LOG.md). So does one of a renormalised teacher, whose images say
        nothing of the student's moments on others.
        """
        images = _first(self.split.statistics, NORM_SAMPLES)
        if self.plan.own or self.finishing.refitted is not Refit.NONE or all(batch_size(batch) < 2 for batch in images):
            return
        kept = self.student
        if not remembering_norms(kept) or self.judge.selected(kept).kl < HARD:
            return

        def fresh() -> Student:
            candidate = copy.deepcopy(kept)
            reestimate_norms(candidate, images, self.plan.run)
            return candidate

        if self._choose([fresh]):
            self.finishing = replace(self.finishing, norms=RE_ESTIMATED)

    def rebase(self) -> None:
        """Of a refitted student the norms compute nearly the same in training from here on; nothing to choose."""
        if self.finishing.refitted is not Refit.NONE:
            rebase_norms(self.student, self.split.statistics, self.plan.run)

    def _bent(self, tilt: float) -> Generation:
        """The generation with the allocation tilted."""
        assert self.base is not None  # else nothing is tilted
        bent = weighted(self.base, by_depth(self.plan.spec, tilt), self.plan.generator.name)
        return bent.generate(self.plan.spec, self.plan.sketches, self.budget)

    def _choose(self, others: list[Callable[[], Student]]) -> int:
        """0 if the student stays, else the number of the one that replaces it."""
        kept = self.student
        index, self.student = choose(self.judge, [lambda: kept, *others])
        if index > 0:
            self.finishing = replace(self.finishing, layers=self.student.report.get("refitted", {}))
        return index

    def _built(self, generation: Generation) -> tuple[Student, Generation]:
        """The student, and what was said of it."""
        return self.built(generation), _said(generation)

    def _refitted(self, student: Student, form: Refit) -> Student:
        """The student, refitted in place."""
        if form is not Refit.NONE:
            plan, both = self.plan, form is Refit.BOTH
            give_back()  # what judging another and building this one have left
            layers = reconstruct(plan.teacher, student, plan.spec, plan.sketches, self.batch, self.plan.run, both=both)
            student.report = {"refitted": layers}
            give_back()
        return student


def _same_ranks(one: Generation, other: Generation) -> bool:
    return (one.plan.ranks, one.plan.input_ranks) == (other.plan.ranks, other.plan.input_ranks)


def _held_by(student: Student, generation: Generation) -> Generation:
    """The generation with the student's factors for its own, which are the same: one copy in memory."""
    said, layers = generation.factors, {}
    for name, given in said.layers.items():
        layer = student.model.get_submodule(name)
        assert isinstance(layer, LowRank)  # a factored one
        layers[name] = replace(factors_of(layer), bias=given.bias)
    return replace(generation, factors=replace(said, layers=layers))


def _said(generation: Generation) -> Generation:
    """The generation without its factors, which a student has: of a large network as much memory as the student."""
    return replace(generation, factors=Factors({}, {}))
