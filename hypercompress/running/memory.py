"""Which tensors lie in the same memory, what is said of one without a second of its size, and freed memory."""

import ctypes
import os
import sys
from collections.abc import Iterable

import torch
from torch import Tensor

# Of `man 3 mallopt`, and the environment in which a user has chosen them.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
CHOSEN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
KEPT = 2**31 - 1  # bytes that stay free: all that an int holds
FROM_SYSTEM = 2**30  # bytes of a block for which the system is asked


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
    tensor = tensor.detach()
    least, most = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).aminmax()
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


def keep_freed() -> bool:
    """Keep the memory that is freed from here on, where the C library can be told so; whether it was.

    glibc asks the system for each block above 32 MiB, and gives it back, and the system clears every page of it. Steps
    free and ask for the same activations again and again: of an EfficientNet-Lite0 that is a third of a step's time,
    of a ResNet-50 a tenth (`benchmarks.kept_memory`). For a process that mostly takes steps; one that goes through
    layers of many sizes would hold more than it needs. What the environment says of it is left alone.
    """
    if sys.platform != "linux" or any(name in os.environ for name in CHOSEN):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return set_option is not None and all(
        set_option(option, size) == 1 for option, size in ((TRIM_THRESHOLD, KEPT), (MMAP_THRESHOLD, FROM_SYSTEM))
    )


def _span(tensor: Tensor) -> tuple[str, int, int, int]:
    """Where a tensor lies: a place (device), its first byte and the one behind its last; and its id."""
    start = tensor.data_ptr()
    if start == 0:  # nothing is stored: it overlaps itself only
        return f"nowhere {id(tensor)}", 0, 0, id(tensor)
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return str(tensor.device), start, start + (last + 1) * tensor.element_size(), id(tensor)
