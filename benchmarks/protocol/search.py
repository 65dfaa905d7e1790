"""`kfac` with ranks found by random search on one teacher: what time alone can buy without a hypernetwork."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hypercompress.compress import Plan, refit_batch
from hypercompress.fidelity import compare
from hypercompress.generator import ANALYTIC, AnalyticGenerator
from hypercompress.generator.protocol import Directions, Frames, Sketches
from hypercompress.reconstruction import reconstruct
from hypercompress.specs import Budget, Curvature, ModelSpec
from hypercompress.student import build_student

SCALES = (1.0, 0.5, 0.25)  # of the steps, in turn; in log energy


@dataclass(frozen=True)
class WeightedKfac(AnalyticGenerator):
    """`kfac` whose allocation sees the energies of each layer times ``exp(weight)``; without weights it is `kfac`.

    Args:
        weights: by layer; absent: 0.
        known: the directions, which do not depend on the weights.
    """

    weights: Mapping[str, float] = field(default_factory=dict)
    known: Directions | None = None

    def directions(
        self, spec: ModelSpec, sketches: Sketches, curvatures: Mapping[str, Curvature] | None = None
    ) -> Directions:
        return self.known or super().directions(spec, sketches, curvatures)

    def energies(self, frames: Frames) -> dict[str, Tensor]:
        found = super().energies(frames)
        return {name: energy * math.exp(self.weights.get(name, 0.0)) for name, energy in found.items()}


def search(plan: Plan, budget: Budget, seconds: float, seed: int, *, refit: bool) -> tuple[WeightedKfac, int]:
    """The weights with the least KL on the images that the guard selects on, and the number of tries.

    Each try is a random step from the best so far; the first is `kfac` itself, and it is what is returned if the best
    does not beat it on the images that the guard confirms on.

    Args:
        plan: with calibration images.
        seconds: wall time; a try that is begun is finished.
        refit: whether the student will be refitted if that helps: then tries are judged so.

    Raises:
        BudgetError: the budget is out of reach.
    """
    split = plan.split
    assert split is not None
    end, generator = time.perf_counter() + seconds, torch.Generator().manual_seed(seed)
    kfac = ANALYTIC["kfac"]
    known = kfac.directions(plan.spec, plan.sketches)
    names = [layer.name for layer in plan.spec.candidates]
    batch = refit_batch(plan.spec, split) if refit else None

    def made(weights: Mapping[str, float]) -> WeightedKfac:
        return WeightedKfac("kfac-search", kfac.metric, spread=kfac.spread, weights=weights, known=known)

    def judged(candidate: WeightedKfac, images: Sequence[Any]) -> float:
        generation = candidate.generate(plan.spec, plan.sketches, budget)
        student = build_student(plan.teacher, plan.spec, generation)
        kl = compare(plan.teacher, student, images).kl
        if batch is None:
            return kl
        reconstruct(plan.teacher, student, plan.spec, plan.sketches, batch)
        return min(kl, compare(plan.teacher, student, images).kl)

    first = best = made({})
    least, tries = judged(best, split.select), 0
    while time.perf_counter() < end:
        scale = SCALES[tries % len(SCALES)]
        step = (scale * torch.randn(len(names), generator=generator)).tolist()
        candidate = made({n: best.weights.get(n, 0.0) + s for n, s in zip(names, step, strict=True)})
        kl, tries = judged(candidate, split.select), tries + 1
        if kl < least:
            best, least = candidate, kl
    confirmed = best is first or judged(best, split.confirm) < judged(first, split.confirm)
    return best if confirmed else first, tries
