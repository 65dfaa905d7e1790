"""Ranks by random search: `kfac`, its allocation bent layer by layer, whatever gives the least KL as measured.

The additive model behind the allocation breaks at hard budgets, where errors of layers amplify each other. A few dozen
blind tries on images find ranks that take up to a third of the KL away (LOG.md, 2026-11-25).
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from hypercompress.fidelity import compare, remembering
from hypercompress.generator import ANALYTIC, WeightedKfac, weighted
from hypercompress.preparation import Plan
from hypercompress.reconstruction import reconstruct
from hypercompress.running.calling import Progress
from hypercompress.specs import Budget
from hypercompress.student import build_student

NAME = "kfac-search"  # of what is found
SCALES = (1.0, 0.5, 0.25)  # of the steps, in turn; in log energy


@dataclass(frozen=True)
class Found:
    """What a search ended with.

    Args:
        generator: `kfac` with the best weights; without any if none was better.
        tries: how many weights were tried.
    """

    generator: WeightedKfac
    tries: int


def search(
    plan: Plan,
    budget: Budget,
    seconds: float,
    *,
    refit: Any = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Found:
    """The weights with the least KL on the images that the guard selects on.

    Each try is a random step from the best so far. The first is `kfac` itself, and it is what is returned if the best
    does not beat it on the images that the guard confirms on.

    Args:
        plan: with calibration batches.
        budget: of parameters or multiply-accumulates.
        seconds: wall time after `kfac` itself is judged; a try that is begun is finished.
        refit: batch to refit every try on, if the student will be refitted where that helps: it is judged at its best.
        progress: called with ``search`` and the number of tries done.

    Raises:
        BudgetError: the budget is out of reach.
    """
    teacher, spec, sketches, split = plan.teacher, plan.spec, plan.sketches, plan.split
    assert split is not None
    generator = torch.Generator().manual_seed(seed)
    kfac = replace(ANALYTIC["kfac"], known=ANALYTIC["kfac"].directions(spec, sketches))
    names = [layer.name for layer in spec.candidates]
    answer = remembering(teacher, plan.run)

    def made(weights: Mapping[str, float]) -> WeightedKfac:
        return weighted(kfac, weights, NAME)

    def judged(candidate: WeightedKfac, images: Sequence[Any]) -> float:
        student = build_student(teacher, spec, candidate.generate(spec, sketches, budget))
        kl = compare(teacher, student, images, answer).kl
        if refit is None:
            return kl
        reconstruct(teacher, student, spec, sketches, refit, plan.run)
        return min(kl, compare(teacher, student, images, answer).kl)

    first = best = made({})
    least, tries = judged(best, split.select), 0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        scale = SCALES[tries % len(SCALES)]
        step = (scale * torch.randn(len(names), generator=generator)).tolist()
        candidate = made({n: best.weights.get(n, 0.0) + s for n, s in zip(names, step, strict=True)})
        kl, tries = judged(candidate, split.select), tries + 1
        if kl < least:
            best, least = candidate, kl
        if progress is not None:
            progress("search", tries)
    confirmed = best is first or judged(best, split.confirm) < judged(first, split.confirm)
    return Found(best if confirmed else first, tries)
