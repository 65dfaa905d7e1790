"""A latency budget that is met as measured, not as predicted.

Layers timed one by one do not add up to the time of a student: caches and launches differ. So students are built and
timed, and the aim is corrected by how much of the predicted saving arrived.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from hypercompress.allocation import least_share
from hypercompress.errors import BudgetError
from hypercompress.generator import Generator
from hypercompress.generator.protocol import Sketches
from hypercompress.latency import times_of
from hypercompress.running.calling import ForwardFn
from hypercompress.specs import Budget, Generation, ModelSpec, Unit

ROUNDS = 8
CLOSE = 0.02  # this near to the least share the least itself is tried
SLACK = 0.06  # a student that takes up to this much less than it may is near enough
AIM = 0.97  # of the target: what is aimed at lies inside the band that is accepted


def targeted(
    teacher: nn.Module,
    spec: ModelSpec,
    sketches: Sketches,
    generator: Generator,
    budget: Budget,
    built: Callable[[Generation], nn.Module],
    example: Any,
    forward_fn: ForwardFn | None = None,
) -> Budget:
    """The budget of predicted latency whose student is measured to meet ``budget``, from below if it can be.

    Args:
        spec: measured (`latency.measure_latency`).
        built: a student of a generation; only its speed matters.
        example: the batch that is timed.

    Raises:
        BudgetError: even the fastest student that can be had is too slow; the message says how fast it is.
    """
    least, tried = least_share(spec, Unit.LATENCY), dict[float, float]()
    aim = max(budget.share, least)
    for _ in range(ROUNDS):
        generation = generator.generate(spec, sketches, Budget(latency=aim))
        dense, ours = times_of(teacher, built(generation), example, forward_fn)
        tried[aim] = achieved = ours / dense
        if budget.share * (1 - SLACK) <= achieved <= budget.share or (aim <= least and achieved > budget.share):
            break
        arrived = (1 - achieved) / max(1 - generation.plan.achieved, 1e-6)
        wanted = 1 - (1 - AIM * budget.share) / max(arrived, 1e-6)
        # Half of the way at most: one bad measurement must not throw the search to an end.
        aim = min(1.0, max(wanted, (aim + least) / 2 if aim - least > CLOSE else least))
    fastest = min(tried.values())
    if fastest > budget.share * (1 + SLACK):
        raise BudgetError(
            f"received a latency budget of {budget.share:g}; expected at least about {fastest:.2f}, what the fastest "
            "student that was tried takes on this machine; choose a larger share"
        )
    within = {aim: time for aim, time in tried.items() if time <= budget.share}
    return Budget(latency=max(within, key=within.__getitem__) if within else min(tried, key=tried.__getitem__))
