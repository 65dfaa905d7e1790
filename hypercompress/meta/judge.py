"""What a student costs: KL, parameters, multiply-accumulates, time where forms were timed; and one score of all."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hypercompress.generator.emission import emit
from hypercompress.generator.heads import Outputs
from hypercompress.meta.case import Case
from hypercompress.meta.loss import Objective, emission_kl
from hypercompress.specs import COUNTED, Afterwards, Budget, ModelSpec, RankPlan, Unit


@dataclass(frozen=True)
class Costs:
    """Of one student.

    Args:
        kl: nats to the teacher.
        params, macs: as shares of the teacher.
        latency: likewise, by the times of the forms; ``None`` if they were not measured.
    """

    kl: float
    params: float
    macs: float
    latency: float | None = None

    def score(self, objective: Objective) -> float:
        """What meta-training makes small: logarithms of all costs, weighted as the objective says."""
        found = objective.accuracy * math.log(min(self.kl, 1e3) + objective.floor)
        found += objective.size * math.log(self.params) + objective.compute * math.log(self.macs)
        if objective.latency and self.latency is not None:
            found += objective.latency * math.log(self.latency)
        return found


def share(spec: ModelSpec, plan: RankPlan, unit: Unit) -> float:
    """What a plan costs, as a share of the teacher."""
    saved = sum(
        layer.dense_cost(unit) - layer.cost(unit, plan.ranks[layer.name], plan.input_ranks.get(layer.name))
        for layer in spec.candidates
        if layer.name in plan.ranks
    )
    return 1 - saved / spec.total(unit)


@dataclass(frozen=True)
class Sample:
    """Images that students are made and judged with.

    Args:
        judged: batches for the KL.
        refit: images to refit on.
        steps: batches to distil on, one for each step.
    """

    judged: Sequence[Tensor]
    refit: Float[Tensor, "m c h w"]
    steps: Sequence[Tensor] = ()


@torch.no_grad()
def judge(case: Case, outputs: Outputs, budget: Budget, after: Afterwards, sample: Sample) -> Costs:
    """Costs of the student that outputs describe with measured curvature, after what is done with it."""
    emission = emit(case.spec, case.sketches[True], case.starts[True], outputs, budget, training=True)
    refit, steps = (sample.refit if after.refit else None), sample.steps[: after.steps]
    kl = emission_kl(case, emission, sample.judged, refit=refit, steps_batches=steps)
    shares = {unit: share(case.spec, emission.plan, unit) for unit in COUNTED}
    timed = share(case.spec, emission.plan, Unit.LATENCY) if case.spec.latency else None
    return Costs(kl, shares[Unit.PARAMS], shares[Unit.MACS], timed)
