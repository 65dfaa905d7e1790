"""A model tried with other modules in the place of its own: whether it computes what it did, and how many of them can
be there so that it does.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hypercompress.running.calling import ForwardFn, evaluating, keeping_random_state, out_of_memory

Item = TypeVar("Item")


@torch.no_grad()
def passed(model: nn.Module, example: Any, forward_fn: ForwardFn) -> Tensor:
    """What a model gives in evaluation mode; it and torch's random state are left as they were."""
    with keeping_random_state(model), evaluating(model):
        return forward_fn(model, example)


def tried(model: nn.Module, example: Any, forward_fn: ForwardFn) -> Tensor | None:
    """`passed`; ``None`` if the model fails. Lack of memory is raised as it is."""
    try:
        return passed(model, example, forward_fn)
    except Exception as error:
        if out_of_memory(error):
            raise
        return None


def fitting(same: Callable[[Sequence[Item]], bool], items: Sequence[Item], beside: Sequence[Item] = ()) -> list[Item]:
    """As many of the items as change nothing, together and ``beside`` others that do not; found by halves.

    Each time that ``same`` says yes, it was asked for all that were found until then, and some more.
    """
    if same([*beside, *items]):
        return list(items)
    if len(items) < 2:
        return []
    half = len(items) // 2
    first = fitting(same, items[:half], beside)
    return [*first, *fitting(same, items[half:], [*beside, *first])]


def alike(one: Tensor, other: Tensor) -> bool:
    """Equal but for rounding, at most half the digits, of the largest."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not (one.is_floating_point() or one.is_complex()):
        return torch.equal(one, other)
    share = torch.finfo(one.dtype).eps ** 0.5
    largest = float(torch.where(other.isfinite(), other, 0).abs().max()) if other.numel() else 0.0
    return torch.allclose(one, other, rtol=share, atol=share * largest, equal_nan=True)
