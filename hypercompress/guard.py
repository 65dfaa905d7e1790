"""Never worse than the safe choice: pick on one held-out split, confirm on another.

The first candidate is always the safe one (strength 0 of a hypernetwork, norms as they are). Another is taken only if
it has the least KL on the selection split *and* beats the safe one on the confirmation split, which no choice has seen.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from torch import nn

from hypercompress.calling import ForwardFn
from hypercompress.fidelity import compare

Model = TypeVar("Model", bound=nn.Module)

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def choose(
    teacher: nn.Module,
    candidates: Sequence[Callable[[], Model]],
    select: Sequence[Any],
    confirm: Sequence[Any],
    forward_fn: ForwardFn | None = None,
) -> tuple[int, Model]:
    """Index of the candidate to use, and the candidate.

    Args:
        teacher: what the candidates are compared with, by KL.
        candidates: builders, called one at a time, so that two new students at most are in memory; the first is the
            safe choice.
        select, confirm: two disjoint lists of held-out batches.
    """
    index, best = 0, candidates[0]()
    least = compare(teacher, best, select, forward_fn).kl
    for place, build in enumerate(candidates[1:], start=1):
        candidate = build()
        kl = compare(teacher, candidate, select, forward_fn).kl
        if kl < least:
            index, best, least = place, candidate, kl
    if index > 0:
        risky = compare(teacher, best, confirm, forward_fn).kl
        safe = candidates[0]()
        if not risky < compare(teacher, safe, confirm, forward_fn).kl:
            return 0, safe
    return index, best
