"""One row of the held-out table: a start, distilled or not, measured on the test images."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from benchmarks.protocol.budgets import Cell
from benchmarks.protocol.methods import NORMS, Case
from benchmarks.protocol.students import Starts
from benchmarks.protocol.subject import Sizes, Subject
from benchmarks.shared.common import fidelity, size_of
from benchmarks.shared.distillation import Recipe, changed, costs_of, distil_each
from hypercompress.fidelity import Fidelity
from lightning_modules.norms import COSTS

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
    before = starts.test(start.network if case.steps else bare.network)
    params, macs = size_of(start.network, subject.test.images[:2])
    frozen = bool(case.steps) and case.method == NORMS and _better_frozen(subject, start.network)
    if case.steps:
        after, rate = _after(subject, starts, start.network, case.steps, frozen, settings.rates)
    else:
        after, rate = starts.test(start.network), None
    return {
        **blank,
        **changed((params, macs), before, after),
        "rate": rate,
        **start.facts,
        "note": "norms frozen" if frozen else start.note,
    }


def _better_frozen(subject: Subject, start: nn.Module) -> bool:
    """Whether a run would freeze the norms; its first batch is the first of the pool here."""
    costs = costs_of(start, subject.pool.subset(slice(BATCH)))
    return costs is not None and costs > COSTS


def _after(
    subject: Subject, starts: Starts, start: nn.Module, steps: int, frozen: bool, rates: Sequence[float]
) -> tuple[Fidelity, float]:
    """What steps make of a start, on the test images, and their rate; of equal starts, as a guard leaves them that
    chooses `kfac`, found once.
    """
    key = (steps, frozen, _state(start))
    if key not in starts.distilled:
        recipes = [Recipe("adamw", rate, steps=steps, batch=BATCH, frozen_norms=frozen) for rate in rates]
        network, rate = _distilled(subject, start, recipes, starts.seed)
        starts.distilled[key] = fidelity(subject.teacher, network, subject.test), rate
    return starts.distilled[key]


def _state(network: nn.Module) -> str:
    """A name of the weights and of what they are called."""
    found = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        found.update(f"{name} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().numpy().tobytes())
    return found.hexdigest()


def _distilled(subject: Subject, start: nn.Module, recipes: Sequence[Recipe], seed: int) -> tuple[nn.Module, float]:
    """The distilled network, at the rate that does best on the validation images."""
    found = distil_each(start, subject.pool, recipes, seed)
    if len(recipes) == 1:
        return found[0], recipes[0].lr
    right = [fidelity(subject.teacher, network, subject.validation).top1_student or 0.0 for network in found]
    best = max(range(len(recipes)), key=right.__getitem__)
    return found[best], recipes[best].lr
