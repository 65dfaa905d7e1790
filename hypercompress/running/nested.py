"""What is in batches and outputs, however they are nested."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hypercompress.errors import ModelError

UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)  # which torch compares and counts on no CPU


@dataclass(frozen=True)
class Uncut:
    """A batch whose samples are not the rows of its first tensor, and which is therefore neither cut nor joined.

    Args:
        samples: the rows that a model gives for it.
    """

    batch: Any
    samples: int


def opened(batch: Any) -> Any:
    """What is passed of a batch: what is in an `Uncut`."""
    return batch.batch if isinstance(batch, Uncut) else batch


def batch_size(batch: Any) -> int:
    """Samples in a batch: the length of its first tensor, if it is no `Uncut`.

    Raises:
        ModelError: no tensor in it.
    """
    if isinstance(batch, Uncut):
        return batch.samples
    for value in flat(batch):
        if isinstance(value, Tensor) and value.ndim > 0:
            return int(value.shape[0])
    raise ModelError(f"received an example of type {type(batch).__name__}; expected a batch that holds a tensor")


def labels_of(batch: Any) -> Tensor | None:
    """The labels of a ``(images, labels)`` batch; ``None`` if there are none or they are marked unknown (-1)."""
    batch = opened(batch)
    if isinstance(batch, (tuple, list)) and len(batch) > 1 and isinstance(batch[1], Tensor):
        labels = batch[1]
        labels = labels.long() if labels.dtype in UNSIGNED else labels
        if labels.ndim == 1 and not (labels.is_floating_point() or labels.is_complex()) and bool((labels >= 0).all()):
            return labels
    return None


def sorted_by_class(labels: Tensor) -> bool:
    """Whether labels [n] of several classes come class after class, as images are read from folders."""
    several = len(labels) > 0 and bool(labels[0] != labels[-1])
    return several and not bool((labels[:-1] > labels[1:]).any())


def flat(value: Any) -> Iterator[Any]:
    """Everything in nested tuples, lists and mappings, in order; of one that holds itself, all else.

    One generator rather than one a level: it is asked for whatever every module of a model keeps.
    """
    levels, around = [iter((opened(value),))], [0]
    while levels:
        for item in levels[-1]:
            held = item if isinstance(item, (tuple, list)) else item.values() if isinstance(item, Mapping) else None
            if held is None:
                yield item
            elif id(item) not in around:
                levels.append(iter(tuple(held)))
                around.append(id(item))
                break
        else:
            levels.pop()
            around.pop()
