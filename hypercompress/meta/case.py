"""A teacher prepared for meta-training, and the budgets worth learning on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from hypercompress.allocation import pareto
from hypercompress.generator.protocol import Sketches
from hypercompress.generator.start import Start, on_device, start_of
from hypercompress.latency import measure_latency
from hypercompress.meta.statistics import Statistics, measure_statistics
from hypercompress.packed.unpacking import unpack
from hypercompress.sketch import sketch
from hypercompress.specs import COUNTED, Budget, ModelSpec, Unit

EASIEST_KL = 2e-3  # predicted nats at which a budget is too easy to learn from
WATCHED = 4  # feature maps to compare, spread over the depth


@dataclass(frozen=True)
class Case:
    """A teacher prepared for meta-training: all that does not change from step to step.

    Args:
        starts: the analytic start with measured curvature and the one without.
        sketches: with measured curvature, and without.
        watched: dotted paths of the modules whose outputs are compared.
        shares: for each unit the range of budgets worth learning on (hardest, easiest).
        timed: ``spec`` with times, if they were measured; students are not bound to the forms found faster.
    """

    name: str
    teacher: nn.Module
    spec: ModelSpec
    starts: Mapping[bool, Start]
    sketches: Mapping[bool, Sketches]
    watched: tuple[str, ...]
    shares: Mapping[Unit, tuple[float, float]]
    timed: ModelSpec | None = None


def prepare_case(
    name: str,
    teacher: nn.Module,
    batches: Sequence[Tensor],
    *,
    timed: bool = False,
    statistics: Statistics | None = None,
) -> Case:
    """Inspect a teacher and measure its curvature once.

    Args:
        batches: calibration images.
        timed: measure times on the first batch.
        statistics: of this teacher, unpacked, on these images; measured if not given.
    """
    teacher = unpack(teacher.eval().requires_grad_(False))
    known = statistics or measure_statistics(teacher, batches)
    spec, device = known.spec, batches[0].device
    free = sketch(teacher, spec, None)
    measured_too = {name: replace(one, curvature=known.curvatures[name]) for name, one in free.items()}
    sketches: dict[bool, Sketches] = {True: measured_too, False: free}
    exact = {measured: start_of(spec, sketches[measured]) for measured in (True, False)}
    starts = {measured: on_device(start, device, torch.float32) for measured, start in exact.items()}
    shares = {}
    for unit in COUNTED:
        points = pareto(spec, exact[True].energies, unit, exact[True].inputs)
        easiest = next((p.share for p in points if p.predicted_kl < EASIEST_KL), 1.0)
        least = points[0].share
        shares[unit] = (max(least, min(least * 1.02, easiest * 0.9)), easiest)
    places = [
        spec.candidates[round(i)]
        for i in torch.linspace(min(1, len(spec.candidates) - 1), len(spec.candidates) - 1, WATCHED).tolist()
    ]
    names = tuple(dict.fromkeys(layer.follower or layer.name for layer in places))
    times = measure_latency(teacher, spec, batches[0]) if timed else None
    return Case(name, teacher, spec, starts, sketches, names, shares, times)


def sample_budget(case: Case, generator: torch.Generator, *, measured: bool = True) -> Budget:
    """A budget of either unit, log-uniform over the range worth learning on."""
    unit = (Unit.PARAMS, Unit.MACS)[int(torch.randint(2, (), generator=generator))]
    return budget_at(case, unit, float(torch.rand((), generator=generator)), measured=measured)


def budget_at(case: Case, unit: Unit, place: float, *, measured: bool = True) -> Budget:
    """The budget at ``place`` in [0, 1] of the range worth learning on: 0 is the hardest.

    Without data every student is worse, so the range lies higher: from the geometric middle of that with data on.
    """
    low, high = case.shares[unit]
    share = min(max(low, 0.9), low * (high / low) ** (place if measured else 0.5 + place))
    return Budget(params=share) if unit is Unit.PARAMS else Budget(macs=share)
