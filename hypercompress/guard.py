"""Never worse than the safe choice: pick on one held-out split, confirm on another.

The first candidate is always the safe one (strength 0 of a hypernetwork, norms as they are). Another is taken only if
it has the least KL on the selection split *and* beats the safe one on the confirmation split, which no choice has seen.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from hypercompress.fidelity import compare
from hypercompress.inspection import ForwardFn

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)


def choose(
    teacher: nn.Module,
    candidates: Sequence[Callable[[], nn.Module]],
    select: Sequence[Any],
    confirm: Sequence[Any],
    forward_fn: ForwardFn | None = None,
) -> int:
    """Index of the candidate to use.

    Args:
        teacher: what the candidates are compared with, by KL.
        candidates: builders, called one at a time; the first is the safe choice.
        select, confirm: two disjoint lists of held-out batches.
    """
    losses = [compare(teacher, build(), select, forward_fn).kl for build in candidates]
    best = min(range(len(losses)), key=losses.__getitem__)
    if best == 0:
        return 0
    risky = compare(teacher, candidates[best](), confirm, forward_fn).kl
    safe = compare(teacher, candidates[0](), confirm, forward_fn).kl
    return best if risky < safe else 0
