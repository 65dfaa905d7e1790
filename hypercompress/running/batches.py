"""Batches, whatever they are made of: cut, joined, moved.

A batch has as many samples as its first tensor is long. A further tensor of another length belongs to all of them (a
table of positions, a mask [t, t], weights of classes): it stays whole. One that is as long by chance cannot be told
from one that has a row for each sample: bind such a tensor in ``forward_fn`` instead. An `Uncut` stays whole.
"""

import copy
import hashlib
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hypercompress.errors import DataError
from hypercompress.running.calling import ordinary
from hypercompress.running.nested import Uncut, batch_size, flat


def to_device(batch: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """The batch with its tensors on ``device``, where autograd can use them; real numbers in ``dtype`` if given."""

    def moved(tensor: Tensor) -> Tensor:
        return ordinary(tensor.to(device, dtype if tensor.is_floating_point() else None))

    return _mapped(lambda tensors: moved(tensors[0]), [batch])


def cut(batch: Any, pieces: int) -> Iterator[Any]:
    """The batch along its first axis in ``pieces`` parts of at least one sample; each has what belongs to all.

    Raises:
        DataError: it has fewer samples.
    """
    samples = batch_size(batch)
    if samples < pieces:
        raise DataError(f"received {samples} calibration samples in one batch; expected at least {pieces}; add images")

    def part(tensor: Tensor, index: int) -> Tensor:
        return tensor.tensor_split(pieces)[index] if by_sample(tensor, samples) else tensor

    return (_mapped(lambda tensors, i=i: part(tensors[0], i), [batch]) for i in range(pieces))  # type: ignore[misc]


def pieces(batches: Iterable[Any], most: int) -> Iterator[Any]:
    """The batches, each in even parts of at most ``most`` samples; one whose tensors differ in length stays whole."""
    for batch in batches:
        lengths = {len(value) for value in flat(batch) if isinstance(value, Tensor) and value.ndim}
        count = -(-max(lengths) // most) if len(lengths) == 1 and not isinstance(batch, Uncut) else 1
        yield from cut(batch, count) if count > 1 else (batch,)


def of_one_layout(batches: Sequence[Any]) -> list[Any]:
    """The batches of the layout that most samples have: those that `join` joins."""
    layouts, counts = [layout_of(batch) for batch in batches], dict[str, int]()
    for batch, layout in zip(batches, layouts, strict=True):
        counts[layout] = counts.get(layout, 0) + batch_size(batch)
    common = max(counts, key=lambda layout: counts[layout])  # of equals the first
    return [batch for batch, layout in zip(batches, layouts, strict=True) if layout == common]


def join(batches: Sequence[Any], most: int) -> Any:
    """The first ``most`` samples in one batch, of the batches of one layout: the one that most samples have."""
    taken: list[Any] = []
    room = most
    for batch in of_one_layout(batches):
        size = batch_size(batch)
        if room <= 0:
            break
        taken.append(batch if size <= room else rows_of(batch, slice(room)))
        room -= size
    samples = batch_size(taken[0])
    return _mapped(lambda tensors: torch.cat(list(tensors)) if by_sample(tensors[0], samples) else tensors[0], taken)


def resized(batch: Any, size: int) -> Any:
    """A batch of ``size`` samples: the first ones, again and again if there are fewer."""
    return rows_of(batch, torch.arange(size) % batch_size(batch))


def rows_of(batch: Any, index: slice | Tensor) -> Any:
    """The batch with these of its samples; one that is an `Uncut` as it is."""
    if isinstance(batch, Uncut):
        return batch
    samples = batch_size(batch)

    def chosen(tensor: Tensor) -> Tensor:
        if not by_sample(tensor, samples):
            return tensor
        return tensor[index if isinstance(index, slice) else index.to(tensor.device)]

    return _mapped(lambda tensors: chosen(tensors[0]), [batch])


def by_sample(tensor: Tensor, samples: int) -> bool:
    """Whether the tensor has a row for each of the batch's samples."""
    return tensor.ndim > 0 and len(tensor) == samples


def layout_of(batch: Any) -> str:
    """What batches must share to be joined: everything but what each sample has for itself, and how many there are."""
    if isinstance(batch, Uncut):
        return f"{id(batch)}"  # with no other
    samples = batch_size(batch)

    def told(tensor: Tensor) -> tuple[Any, ...]:
        if by_sample(tensor, samples):
            return tuple(tensor.shape[1:]), tensor.dtype
        return tuple(tensor.shape), tensor.dtype, _digest(tensor)

    return repr(_mapped(lambda tensors: told(tensors[0]), [batch]))


def _digest(tensor: Tensor) -> str:
    """Of the tensor's numbers."""
    dense = tensor if tensor.layout is torch.strided else tensor.to_dense()
    numbers = dense.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(numbers.tobytes()).hexdigest()


def copied(batch: Any) -> Any:
    """The batch in memory of its own."""
    return _mapped(lambda tensors: tensors[0].clone(), [batch])


def _mapped(function: Callable[[Sequence[Tensor]], Any], batches: Sequence[Any]) -> Any:
    """``function`` of the tensors at each place of batches built alike; what is no tensor is the first batch's."""
    first = batches[0]
    if isinstance(first, Uncut):
        return replace(first, batch=_mapped(function, [batch.batch for batch in batches]))
    if isinstance(first, Tensor):
        return function(batches)
    if isinstance(first, Mapping):
        values = {key: _mapped(function, [batch[key] for batch in batches]) for key in first}
        return _like(first, values) if isinstance(first, UserDict) else values
    if isinstance(first, (tuple, list)):
        items = [_mapped(function, column) for column in zip(*batches, strict=True)]
        return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
    return first


def _like(batch: "UserDict[Any, Any]", values: dict[Any, Any]) -> "UserDict[Any, Any]":
    """A batch of the same class with other values: those of Hugging Face are read as attributes, too."""
    made = copy.copy(batch)
    made.data = values
    return made
