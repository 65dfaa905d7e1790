"""One row of the held-out table: a start, distilled or not, measured on the test images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from benchmarks.common import fidelity, size_of
from benchmarks.distillation import Recipe, distil
from benchmarks.protocol.budgets import Cell
from benchmarks.protocol.methods import Case
from benchmarks.protocol.students import Start, Starts
from benchmarks.protocol.subject import Sizes, Subject

BATCH = 128
KEY = ("teacher", "method", "statistics", "unit", "level", "steps", "seed")
MADE_OF = ("weights", "settings", "share")
MEASURED = ("params", "macs", "top1_start", "kl_start", "top1", "agreement", "kl", "top1_teacher")
FACTS = ("rate", "refit", "strength", "seconds", "note")


@dataclass(frozen=True)
class Settings:
    """What every row is made with.

    Args:
        sizes: numbers of images.
        rates: learning rates to choose from; the best on the validation images is taken.
    """

    sizes: Sizes
    rates: Sequence[float]

    def text(self, steps: int, *, refit: bool = False, tilt: bool = False) -> str:
        """For the table; a student that is not distilled has no rate, one that may be refitted or tilted says so."""
        rates = f", rates {' '.join(f'{rate:g}' for rate in self.rates)}, batch {BATCH}" if steps else ""
        told = f"{', refit of both factors' if refit else ''}{', tilt' if tilt else ''}"
        return f"{self.sizes}{rates}{told}"


def measure(subject: Subject, starts: Starts, case: Case, cell: Cell, settings: Settings) -> dict[str, Any]:
    """The columns of a row that are measured; empty where there is no student."""
    blank: dict[str, Any] = dict.fromkeys((*MEASURED, *FACTS))
    if cell.share is None:
        return {**blank, "note": "no such budget: the smallest kfac student keeps more"}
    start, bare = starts.make(case, cell), starts.bare(case, cell)
    if start.network is None or bare.network is None:
        return {**blank, "note": start.note or bare.note}
    before = starts.test(bare.network)
    params, macs = size_of(start.network, subject.test.images[:2])
    if case.steps:
        network, rate = _distilled(subject, start, case.steps, starts.seed, settings.rates)
        after = fidelity(subject.teacher, network, subject.test)
    else:
        after, rate = starts.test(start.network), None
    return {
        **blank,
        "params": params,
        "macs": macs,
        "top1_start": before.top1_student,
        "kl_start": before.kl,
        "top1": after.top1_student,
        "agreement": after.agreement,
        "kl": after.kl,
        "top1_teacher": after.top1_teacher,
        "rate": rate,
        **start.facts,
        "note": start.note,
    }


def _distilled(
    subject: Subject, start: Start, steps: int, seed: int, rates: Sequence[float]
) -> tuple[nn.Module, float]:
    """The distilled network, at the rate that does best on the validation images."""
    assert start.network is not None
    best: tuple[float, nn.Module, float] | None = None
    for rate in rates:
        network = distil(start.network, subject.pool, Recipe("adamw", rate, steps=steps, batch=BATCH), seed)
        if len(rates) == 1:
            return network, rate
        top1 = fidelity(subject.teacher, network, subject.validation).top1_student or 0.0
        if best is None or top1 > best[0]:
            best = (top1, network, rate)
    assert best is not None  # there is a rate
    return best[1], best[2]
