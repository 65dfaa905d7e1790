"""Hooks that last for a block."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from torch.utils.hooks import RemovableHandle


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """The hooks are gone after the block, however it ends; if they cannot all be set, those that were are, too."""
    with ExitStack() as stack:
        for handle in handles:
            stack.callback(handle.remove)
        yield
