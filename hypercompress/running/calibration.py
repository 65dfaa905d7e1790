"""Calibration batches, whatever they are made of: split by use, cut, joined, moved."""

import copy
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from hypercompress.errors import DataError
from hypercompress.running.calling import batch_size, flat, ordinary

HELD_OUT_SHARE = 8  # one batch in eight selects, one confirms; the others make the statistics


@dataclass(frozen=True)
class CalibrationSplit:
    """Calibration batches by use: statistics, selection and confirmation never share an image."""

    statistics: Sequence[Any]
    select: Sequence[Any]
    confirm: Sequence[Any]

    @property
    def samples(self) -> int:
        """In the statistics."""
        return sum(map(batch_size, self.statistics))


def split_batches(data: Iterable[Any], device: torch.device, dtype: torch.dtype | None = None) -> CalibrationSplit:
    """Every eighth batch selects and the one after it confirms; of fewer than three batches each is cut in three.

    Args:
        data: batches; those without a sample are left out.
        dtype: of real numbers in the batches; ``None``: as they are.

    Raises:
        DataError: no batch, a single one of fewer than three samples, one without a tensor that can be reached, or see
            `require_batches`.
    """
    require_batches(data)
    batches = [to_device(batch, device, dtype) for batch in data]
    for batch in batches:
        if not any(isinstance(value, Tensor) for value in flat(batch)):
            raise DataError(
                f"received a calibration batch of type {type(batch).__name__} in which no tensor is found; expected a "
                "tensor, or tuples, lists and mappings that hold some; convert the batches"
            )
    batches = [batch for batch in batches if batch_size(batch) > 0]
    if not batches:
        raise DataError("received calibration data without a single batch; expected at least one; check the loader")
    if len(batches) < 3:
        batches = list(chain.from_iterable(cut(batch, 3) for batch in batches))
    parts: dict[str, list[Any]] = {"statistics": [], "select": [], "confirm": []}
    for index, batch in enumerate(batches):
        place = index % max(3, min(HELD_OUT_SHARE, len(batches)))
        parts[("select", "confirm")[place] if place < 2 else "statistics"].append(batch)
    # The first that runs shows whether a model writes into its input (`calling.unwritten`): not into the caller's.
    parts["statistics"][0] = _mapped(lambda tensors: tensors[0].clone(), parts["statistics"][:1])
    return CalibrationSplit(**parts)


def require_batches(data: Any) -> None:
    """Raises DataError if ``data`` is the name of a set, or its items are evidently single samples: those of a tensor
    or an indexed set.
    """
    if isinstance(data, (str, Path)):
        name = repr(str(data))
        raise DataError(
            f"received the text {name} as calibration data; expected batches; pass loader(open_data({name}, "
            "Preprocess.of(model), train=True), batch_size=32, shuffle=True), all three from hypercompress.data"
        )
    if isinstance(data, Tensor) or (isinstance(data, Dataset) and not isinstance(data, IterableDataset)):
        how = "data.split(32)" if isinstance(data, Tensor) else "torch.utils.data.DataLoader(data, batch_size=32)"
        raise DataError(
            f"received a {type(data).__name__} as calibration data, whose items are single samples; expected batches, "
            f"each of several samples along its first axis; pass {how}"
        )


def to_device(batch: Any, device: torch.device, dtype: torch.dtype | None = None) -> Any:
    """The batch with its tensors on ``device``, where autograd can use them; real numbers in ``dtype`` if given."""

    def moved(tensor: Tensor) -> Tensor:
        return ordinary(tensor.to(device, dtype if tensor.is_floating_point() else None))

    return _mapped(lambda tensors: moved(tensors[0]), [batch])


def cut(batch: Any, pieces: int) -> Iterator[Any]:
    """The batch along its first axis in ``pieces`` parts of at least one sample.

    Raises:
        DataError: it has fewer samples.
    """

    def part(tensor: Tensor, index: int) -> Tensor:
        if tensor.ndim == 0:
            return tensor
        if len(tensor) < pieces:
            raise DataError(
                f"received {len(tensor)} calibration samples in one batch; expected at least {pieces}; add images"
            )
        return tensor.tensor_split(pieces)[index]

    return (_mapped(lambda tensors, i=i: part(tensors[0], i), [batch]) for i in range(pieces))  # type: ignore[misc]


def pieces(batches: Iterable[Any], most: int) -> Iterator[Any]:
    """The batches, each in even parts of at most ``most`` samples; one whose tensors differ in length stays whole."""
    for batch in batches:
        lengths = {len(value) for value in flat(batch) if isinstance(value, Tensor) and value.ndim}
        count = -(-max(lengths) // most) if len(lengths) == 1 else 1
        yield from cut(batch, count) if count > 1 else (batch,)


def join(batches: Sequence[Any], most: int) -> Any:
    """The first ``most`` samples in one batch, of the batches of one shape: the one that most samples have."""
    counts: dict[Any, int] = {}
    for batch in batches:
        counts[layout_of(batch)] = counts.get(layout_of(batch), 0) + batch_size(batch)
    common = max(counts, key=lambda shape: counts[shape])  # of equals the first
    taken: list[Any] = []
    room = most
    for batch in batches:
        size = batch_size(batch)
        if room <= 0 or layout_of(batch) != common:
            continue
        taken.append(batch if size <= room else _mapped(lambda tensors, n=room: _first(tensors[0], n), [batch]))  # type: ignore[misc]
        room -= size
    return _mapped(lambda tensors: torch.cat(list(tensors)) if tensors[0].ndim else tensors[0], taken)


def resized(batch: Any, size: int) -> Any:
    """A batch of ``size`` samples: the first ones, again and again if there are fewer."""

    def rows(tensor: Tensor) -> Tensor:
        return tensor[torch.arange(size, device=tensor.device) % len(tensor)] if tensor.ndim else tensor

    return _mapped(lambda tensors: rows(tensors[0]), [batch])


def _first(tensor: Tensor, samples: int) -> Tensor:
    return tensor[:samples] if tensor.ndim else tensor


def layout_of(batch: Any) -> Any:
    """What batches must share to be joined: everything but the number of samples."""
    return repr(_mapped(lambda tensors: (tuple(tensors[0].shape[1:]), tensors[0].dtype), [batch]))


def _mapped(function: Callable[[Sequence[Tensor]], Any], batches: Sequence[Any]) -> Any:
    """``function`` of the tensors at each place of batches built alike; what is no tensor is the first batch's."""
    first = batches[0]
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
