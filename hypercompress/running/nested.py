"""What is in batches and outputs, however they are nested."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from hypercompress.errors import ModelError


def batch_size(batch: Any) -> int:
    """Samples in a batch: the length of its first tensor.

    Raises:
        ModelError: no tensor in it.
    """
    for value in flat(batch):
        if isinstance(value, Tensor) and value.ndim > 0:
            return int(value.shape[0])
    raise ModelError(f"received an example of type {type(batch).__name__}; expected a batch that holds a tensor")


def flat(value: Any) -> Iterator[Any]:
    """Everything in nested tuples, lists and mappings."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from flat(item)
    elif isinstance(value, Mapping):
        yield from flat(tuple(value.values()))
    else:
        yield value
