"""Never worse than the safe choice: pick on one held-out split, confirm on another.

The first candidate is always the safe one (strength 0 of a hypernetwork, norms as they are). Another is taken only if
it has the least KL on the selection split *and* beats the safe one on the confirmation split, which no choice has seen.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from torch import nn

from hypercompress.fidelity import Fidelity, compare, remembering
from hypercompress.running.calling import ForwardFn

Model = TypeVar("Model", bound=nn.Module)

STRENGTHS = (0.0, 1.0)  # between them lay 4 of 62 choices, and each costs a student (LOG.md)


class Judge:
    """How far students are from their teacher on two disjoint lists of held-out batches.

    A student is measured once: one that took part in one choice and stays takes part in the next as it was.
    """

    def __init__(
        self, teacher: nn.Module, select: Sequence[Any], confirm: Sequence[Any], forward_fn: ForwardFn | None = None
    ) -> None:
        self._teacher, self._answer = teacher, remembering(teacher, forward_fn)
        self._splits = {"select": select, "confirm": confirm}
        self._known: dict[str, WeakKeyDictionary[nn.Module, Fidelity]]
        self._known = {split: WeakKeyDictionary() for split in self._splits}

    def selected(self, student: nn.Module) -> Fidelity:
        """On the batches that choices are made by."""
        return self._measured("select", student)

    def confirmed(self, student: nn.Module) -> Fidelity:
        """On the batches that choices are confirmed by."""
        return self._measured("confirm", student)

    def kl(self, student: nn.Module) -> float:
        """On all of these batches, in nats."""
        found = self.selected(student), self.confirmed(student)
        return sum(part.kl * part.images for part in found) / sum(part.images for part in found)

    def _measured(self, split: str, student: nn.Module) -> Fidelity:
        known = self._known[split]
        if student not in known:
            known[student] = compare(self._teacher, student, self._splits[split], self._answer)
        return known[student]


def choose(judge: Judge, candidates: Sequence[Callable[[], Model]]) -> tuple[int, Model]:
    """Index of the candidate to use, and the candidate.

    Args:
        judge: measures the candidates by KL.
        candidates: builders, called one at a time, so that two new students at most are in memory; the first is the
            safe choice.
    """
    index, best = 0, candidates[0]()
    least = judge.selected(best).kl
    for place, build in enumerate(candidates[1:], start=1):
        candidate = build()
        kl = judge.selected(candidate).kl
        if kl < least:
            index, best, least = place, candidate, kl
    if index > 0:
        safe = candidates[0]()
        if not judge.confirmed(best).kl < judge.confirmed(safe).kl:
            return 0, safe
    return index, best
