"""A latency budget that is met as measured, not as predicted, and what a student takes in the end.

Layers timed one by one do not add up to the time of a student: caches and launches differ. So students are built and
timed, and the next aim lies between the nearest that was too slow and the nearest that was not.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hypercompress.allocation import least_share
from hypercompress.errors import BudgetError, warn
from hypercompress.generator import Generator
from hypercompress.generator.protocol import Sketches
from hypercompress.latency import times_of
from hypercompress.running.calling import ForwardFn, device_of
from hypercompress.running.nested import batch_size
from hypercompress.specs import Budget, Generation, ModelSpec, Unit
from hypercompress.student import Student

ROUNDS = 8
CLOSE = 0.02  # this near to the least share the least itself is tried
SLACK = 0.06  # a student that takes up to this much less than it may is near enough; more, if no faster one is found
AIM = 0.97  # of the target: what is aimed at lies inside the band that is accepted
INSIDE = 0.2  # of the way between two aims: the next one is at least this far from either


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
        BudgetError: even the fastest student that can be had is too slow; the message says how fast it is. Never of a
            budget of 1, which the teacher itself meets.
    """
    least, tried = least_share(spec, Unit.LATENCY), dict[float, float]()
    aim = max(budget.share, least)
    fast, slow = None, (1.0, 1.0)  # what was aimed at and what arrived, nearest to the target on either side
    for _ in range(ROUNDS):
        generation = generator.generate(spec, sketches, Budget(latency=aim))
        if generation.plan.ranks:
            dense, ours = times_of(teacher, built(generation), example, forward_fn)
            tried[aim] = achieved = ours / dense
        else:  # it is the teacher itself, whatever a clock would make of the two
            tried[aim] = achieved = 1.0
        if budget.share * (1 - SLACK) <= achieved <= budget.share or (aim <= least and achieved > budget.share):
            break
        if achieved <= budget.share:
            fast = (aim, achieved)
        else:
            slow = (aim, achieved)
        aim = _between(fast, slow, AIM * budget.share, least)
        if least not in tried and aim - least < CLOSE:
            aim = least
    fastest = min(tried.values())
    if missed(fastest, budget.share):
        raise BudgetError(f"received a latency budget of {budget.share:g}; expected {_possible(fastest)}")
    within = {aim: time for aim, time in tried.items() if time <= budget.share}
    return Budget(latency=max(within, key=within.__getitem__) if within else min(tried, key=tried.__getitem__))


def missed(achieved: float, share: float) -> bool:
    """Whether a measured share of the teacher's time is more than a budget's, beyond what measurements differ by."""
    return achieved > share * (1 + SLACK)


def _possible(fastest: float) -> str:
    """What may be asked for where the fastest student that was tried takes this share of the teacher's time."""
    if round(fastest, 2) < 1:
        return (
            f"at least about {fastest:.2f}, what the fastest student that was tried takes on this machine; choose a "
            "larger share"
        )
    return (
        f"1: no student that was tried is faster than the model itself on this machine (the fastest takes "
        f"{fastest:.2f} of its time); leave the model as it is, time larger batches, or choose a budget of params or "
        "macs"
    )


def _between(fast: tuple[float, float] | None, slow: tuple[float, float], target: float, least: float) -> float:
    """The aim at which a straight line through both has the target, or one through the slow student and the teacher
    while none is fast enough; well inside, because one bad measurement must not throw the search to an end.
    """
    near, far = (slow, (1.0, 1.0)) if fast is None else (fast, slow)
    wanted = near[0] + (far[0] - near[0]) * (target - near[1]) / max(far[1] - near[1], 1e-6)
    low = least if fast is None else fast[0]
    margin = INSIDE * (slow[0] - low)
    return min(max(wanted, low + margin), slow[0] - margin)


def report_times(student: Student, teacher: nn.Module, timed: Any, forward_fn: ForwardFn | None) -> None:
    """Put what the student really takes on the batch ``timed`` into its report; a target that it misses is told."""
    dense, ours = times_of(teacher, student, timed, forward_fn)
    if student.report["budget"]["unit"] == Unit.LATENCY and student.ranks:  # one without is the teacher itself
        share = student.report["budget"]["target"]
        if missed(ours / dense, share):  # a student of these ranks met it: something else may run for a while
            again = times_of(teacher, student, timed, forward_fn)
            dense, ours = min((dense, ours), again, key=lambda times: times[1] / times[0])
        student.report["budget"]["achieved"] = ours / dense
        if missed(ours / dense, share):
            warn(
                f"received a latency budget of {share:g} that the student misses: measured again, it takes "
                f"{ours / dense:.2f} of the teacher's time; expected at most {share:g}; the machine may be busy: run "
                "again, or ask for less",
            )
    student.report["latency"] = {
        "teacher_ms": dense,
        "student_ms": ours,
        "batch_size": batch_size(timed),
        "threads": torch.get_num_threads(),
        "device": str(device_of(teacher)),
    }
