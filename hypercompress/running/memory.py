"""Which tensors lie in the same memory, what is said of one without a second of its size, and memory given back."""

import ctypes
import sys
from collections.abc import Iterable

from torch import Tensor


def overlapping(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Id of each tensor -> number of its group; those of one group overlap in memory, directly or by way of others.

    One storage is not yet one memory: of all parameters in one flat vector none overlaps another.
    """
    spans = sorted({_span(tensor) for tensor in tensors})
    groups: dict[int, int] = {}
    place, reached, group = "", 0, -1
    for where, start, end, tensor in spans:
        if where != place or start >= reached:
            place, reached, group = where, end, group + 1
        groups[tensor], reached = group, max(reached, end)
    return groups


def finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite. Both ends are: NaN passes through either, and nothing lies beyond them."""
    if tensor.numel() == 0:
        return True
    least, most = tensor.detach().aminmax()
    return bool(least.isfinite() & most.isfinite())


def give_back() -> None:
    """Give the memory that was freed back to the system, where the C library can be asked to.

    glibc keeps freed blocks of up to 32 MiB. After the activations of some passes they are more than all that is still
    in use (of a ViT-B 1.1 GB), and too broken up for what comes next.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def _span(tensor: Tensor) -> tuple[str, int, int, int]:
    """Where a tensor lies: a place (device), its first byte and the one behind its last; and its id."""
    start = tensor.data_ptr()
    if start == 0:  # nothing is stored: it overlaps itself only
        return f"nowhere {id(tensor)}", 0, 0, id(tensor)
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return str(tensor.device), start, start + (last + 1) * tensor.element_size(), id(tensor)
