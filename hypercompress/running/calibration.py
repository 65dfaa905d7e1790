"""Calibration batches, whatever they are made of: split by use, cut, joined, moved.

A batch has as many samples as its first tensor is long. A further tensor of another length belongs to all of them (a
table of positions, a mask [t, t], weights of classes): it stays whole. One that is as long by chance cannot be told
from one that has a row for each sample: bind such a tensor in ``forward_fn`` instead.
"""

import copy
import hashlib
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
from hypercompress.running.calling import ordinary
from hypercompress.running.nested import batch_size, flat, labels_of, sorted_by_class

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


def split_batches(
    data: Iterable[Any], device: torch.device, dtype: torch.dtype | None = None, *, passed: bool = False
) -> CalibrationSplit:
    """Every eighth batch selects and the one after it confirms; of fewer than three batches each is cut in three.

    Args:
        data: batches, of shuffled samples: those that select and confirm are not measured on. Of ``(images, labels)``
            in the order of their labels the samples are shuffled here. Batches without a sample are left out. Of an
            iterable that makes them one by one they are copied: it may refill the same memory.
        dtype: of real numbers in the batches; ``None``: as they are.
        passed: whether `call_model` passes them, which reads of a tuple no more than the first item: behind it all but
            labels is left out.

    Raises:
        DataError: no batch, fewer than three samples, a batch without a tensor that can be reached, or see
            `require_batches`.
    """
    require_batches(data)
    lasting = isinstance(data, (list, tuple))
    read = (_as_passed(batch) if passed else batch for batch in data)
    batches = [to_device(batch if lasting else _copied(batch), device, dtype) for batch in read]
    for batch in batches:
        if not any(isinstance(value, Tensor) for value in flat(batch)):
            raise DataError(
                f"received a calibration batch of type {type(batch).__name__} in which no tensor is found; expected a "
                "tensor, or tuples, lists and mappings that hold some; convert the batches"
            )
    batches = [batch for batch in batches if batch_size(batch) > 0]
    if not batches:
        raise DataError("received calibration data without a single batch; expected at least one; check the loader")
    batches = _mixed(batches)
    if len(batches) < 3:
        batches = list(chain.from_iterable(cut(batch, min(3, batch_size(batch))) for batch in batches))
    if len(batches) < 3:
        raise DataError(
            f"received {len(batches)} calibration samples; expected at least 3, to measure, to select and to confirm "
            "with; add images"
        )
    parts: dict[str, list[Any]] = {"statistics": [], "select": [], "confirm": []}
    for index, batch in enumerate(batches):
        place = index % max(3, min(HELD_OUT_SHARE, len(batches)))
        parts[("select", "confirm")[place] if place < 2 else "statistics"].append(batch)
    # The first that runs shows whether a model writes into its input (`calling.unwritten`): not into the caller's.
    parts["statistics"][0] = _copied(parts["statistics"][0])
    return CalibrationSplit(**parts)


def _mixed(batches: list[Any]) -> list[Any]:
    """Batches of samples and labels that are sorted by label, as folders of classes are read, with all samples in
    another order: of one batch in four whole classes would be missing in the statistics. Other batches as they are.
    """
    labels = [labels_of(batch) for batch in batches]
    each = [values for values in labels if values is not None]
    if list(map(len, each)) != list(map(batch_size, batches)) or len(set(map(layout_of, batches))) > 1:
        return batches
    classes = torch.cat(each)
    if not sorted_by_class(classes):
        return batches
    order = torch.randperm(len(classes), generator=torch.Generator().manual_seed(0))
    together = join(batches, len(classes))
    return [_rows(together, part) for part in order.split([len(values) for values in each])]


def _as_passed(batch: Any) -> Any:
    """Of a tuple or list the images and, if there is one for each, the labels: file names and the like, which differ
    from batch to batch, would keep batches from being joined.
    """
    if not isinstance(batch, (tuple, list)) or not batch or not isinstance(batch[0], Tensor):
        return batch
    images, labels = batch[0], batch[1] if len(batch) > 1 else None
    each = isinstance(labels, Tensor) and images.ndim > 0 and _by_sample(labels, len(images))
    return (images, labels) if each else (images,)


def require_batches(data: Any) -> None:
    """Raises DataError if ``data`` is the name of a set, its items are evidently single samples (those of a tensor or
    an indexed set), it has no items, or it is evidently a single batch of images and labels.
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
    if not (hasattr(data, "__iter__") or hasattr(data, "__getitem__")):  # not asked: an iterator may be slow to start
        raise DataError(
            f"received {data!r} as calibration data; expected batches; pass a loader or a list of batches, or None to "
            "compress without images"
        )
    if _images_and_labels(data):
        raise DataError(
            f"received tensors {list(data[0].shape)} and {list(data[1].shape)} as calibration data, which are images "
            "and labels of a single batch; expected batches; wrap it: data=[(images, labels)]"
        )


def _images_and_labels(data: Any) -> bool:
    """Whether ``data`` is two tensors, as many rows in each, that no model takes as two batches: of as many axes, and
    both of real numbers or none.
    """
    if not isinstance(data, (tuple, list)) or len(data) != 2 or not all(isinstance(part, Tensor) for part in data):
        return False
    one, other = data
    alike = (one.ndim, one.is_floating_point()) == (other.ndim, other.is_floating_point())
    return one.ndim > 0 and one.shape[:1] == other.shape[:1] and not alike


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
        return tensor.tensor_split(pieces)[index] if _by_sample(tensor, samples) else tensor

    return (_mapped(lambda tensors, i=i: part(tensors[0], i), [batch]) for i in range(pieces))  # type: ignore[misc]


def pieces(batches: Iterable[Any], most: int) -> Iterator[Any]:
    """The batches, each in even parts of at most ``most`` samples; one whose tensors differ in length stays whole."""
    for batch in batches:
        lengths = {len(value) for value in flat(batch) if isinstance(value, Tensor) and value.ndim}
        count = -(-max(lengths) // most) if len(lengths) == 1 else 1
        yield from cut(batch, count) if count > 1 else (batch,)


def join(batches: Sequence[Any], most: int) -> Any:
    """The first ``most`` samples in one batch, of the batches of one layout: the one that most samples have."""
    layouts, counts = [layout_of(batch) for batch in batches], dict[str, int]()
    for batch, layout in zip(batches, layouts, strict=True):
        counts[layout] = counts.get(layout, 0) + batch_size(batch)
    common = max(counts, key=lambda layout: counts[layout])  # of equals the first
    taken: list[Any] = []
    room = most
    for batch, layout in zip(batches, layouts, strict=True):
        size = batch_size(batch)
        if room <= 0 or layout != common:
            continue
        taken.append(batch if size <= room else _rows(batch, slice(room)))
        room -= size
    samples = batch_size(taken[0])
    return _mapped(lambda tensors: torch.cat(list(tensors)) if _by_sample(tensors[0], samples) else tensors[0], taken)


def resized(batch: Any, size: int) -> Any:
    """A batch of ``size`` samples: the first ones, again and again if there are fewer."""
    return _rows(batch, torch.arange(size) % batch_size(batch))


def _rows(batch: Any, index: slice | Tensor) -> Any:
    """The batch with these of its samples."""
    samples = batch_size(batch)

    def chosen(tensor: Tensor) -> Tensor:
        if not _by_sample(tensor, samples):
            return tensor
        return tensor[index if isinstance(index, slice) else index.to(tensor.device)]

    return _mapped(lambda tensors: chosen(tensors[0]), [batch])


def _by_sample(tensor: Tensor, samples: int) -> bool:
    """Whether the tensor has a row for each of the batch's samples."""
    return tensor.ndim > 0 and len(tensor) == samples


def layout_of(batch: Any) -> str:
    """What batches must share to be joined: everything but what each sample has for itself, and how many there are."""
    samples = batch_size(batch)

    def told(tensor: Tensor) -> tuple[Any, ...]:
        if _by_sample(tensor, samples):
            return tuple(tensor.shape[1:]), tensor.dtype
        return tuple(tensor.shape), tensor.dtype, _digest(tensor)

    return repr(_mapped(lambda tensors: told(tensors[0]), [batch]))


def _digest(tensor: Tensor) -> str:
    """Of the tensor's numbers."""
    dense = tensor if tensor.layout is torch.strided else tensor.to_dense()
    numbers = dense.detach().cpu().resolve_conj().resolve_neg().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(numbers.tobytes()).hexdigest()


def _copied(batch: Any) -> Any:
    """The batch in memory of its own."""
    return _mapped(lambda tensors: tensors[0].clone(), [batch])


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
