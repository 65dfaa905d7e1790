"""Calibration batches: read, and split by use."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from hypercompress.errors import DataError, no_batch, warn
from hypercompress.running.batches import by_sample, copied, join, layout_of, rows_of, to_device
from hypercompress.running.nested import Uncut, batch_size, flat, labels_of, opened, sorted_by_class

UNLIKELY = 1e-6  # that shuffled samples come so in the order of their labels
HELD_OUT_SHARE = 8  # one batch in eight selects, one confirms; the others make the statistics
LEAST_HELD = 16  # samples to select and to confirm with, where batches have to be cut, if that is no more than
MOST_HELD_SHARE = 6  # a sixth of them: with a third KL was four to seven times as large (LOG.md, 2026-11-30)


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
    data: Iterable[Any],
    device: torch.device,
    dtype: torch.dtype | None = None,
    *,
    passed: bool = False,
    images: int | None = None,
    known: Callable[[Iterable[Any]], Iterator[Any]] = iter,
) -> CalibrationSplit:
    """Every eighth batch selects and the one after it confirms. Of fewer than three batches, and where that leaves less
    than half of the samples for statistics, an eighth of the samples selects and one confirms (see `LEAST_HELD`).

    Args:
        data: batches, of shuffled samples: those that select and confirm are not measured on. Of ``(images, labels)``
            in the order of their labels the samples are shuffled here. Batches without a sample are left out. Of an
            iterable that makes them one by one they are copied: it may refill the same memory.
        dtype: of real numbers in the batches; ``None``: as they are.
        passed: whether `call_model` passes them, which reads of a tuple no more than the first item: behind it all but
            labels is left out.
        images: samples to read at most, unless the batches are in memory already; ``None``: all.
        known: makes an `Uncut` of each batch that is one.

    Raises:
        DataError: no batch, fewer than three that are not cut, fewer than three samples, a batch without a tensor that
            can be reached, samples in the order of their labels of which only the first were read, or see
            `require_batches`.
    """
    require_batches(data)
    read = known(map(_whole, data))
    read = map(_as_passed, read) if passed else read
    read = read if isinstance(data, (list, tuple)) else _first(read, images, passed)
    batches = list(map(partial(to_device, device=device, dtype=dtype), read))
    batches = [batch for batch in batches if batch_size(batch) > 0]
    if not batches:
        raise no_batch("calibration")
    batches = _mixed(batches)
    samples = sum(map(batch_size, batches))
    if samples < 3:
        raise DataError(
            f"received {samples} calibration samples; expected at least 3, to measure, to select and to confirm with; "
            "add images"
        )
    if len(batches) < 3 and any(isinstance(batch, Uncut) for batch in batches):
        raise DataError(
            f"received {len(batches)} calibration batches for which the model gives other rows than their first tensor "
            "has; expected 3 or more of such, as they are not cut; pass more batches, or the samples along the first "
            "axis, and forward_fn=lambda model, batch: ... that moves it"
        )
    split = None if len(batches) < 3 else _by_batches(batches)
    if split is None or (2 * split.samples < samples and all(map(_in_samples, batches))):
        split = _by_samples(batches)
    # The first that runs shows whether a model writes into its input (`calling.unwritten`): not into the caller's.
    return replace(split, statistics=[copied(split.statistics[0]), *split.statistics[1:]])


def _by_batches(batches: Sequence[Any]) -> CalibrationSplit:
    """Of every eight of three batches or more the first selects, and the second confirms."""
    parts: dict[str, list[Any]] = {"statistics": [], "select": [], "confirm": []}
    for index, batch in enumerate(batches):
        place = index % max(3, min(HELD_OUT_SHARE, len(batches)))
        parts[("select", "confirm")[place] if place < 2 else "statistics"].append(batch)
    return CalibrationSplit(**parts)


def _by_samples(batches: Sequence[Any]) -> CalibrationSplit:
    """The first samples select, and the next confirm: batches are cut where these end, but for no piece of one sample
    where that can be helped: some models drop the axis of a batch of one.
    """
    parts: dict[str, list[Any]] = {"select": [], "confirm": [], "statistics": []}
    edges = (0, *accumulate(map(batch_size, batches)))
    total = edges[-1]
    held = max(1, total // HELD_OUT_SHARE, min(total // MOST_HELD_SHARE, LEAST_HELD))
    first = _beside(held, edges, 0, 2 * held)
    ends = {"select": first, "confirm": _beside(2 * held, edges, first, total), "statistics": total}
    begin = 0
    for batch in batches:
        taken, size = 0, batch_size(batch)
        for name, end in ends.items():
            upto = min(max(end - begin, taken), size)
            if upto > taken:
                parts[name].append(rows_of(batch, slice(taken, upto)))
            taken = upto
        begin += size
    return CalibrationSplit(**parts)


def _beside(end: int, edges: Sequence[int], low: int, high: int) -> int:
    """An edge between two batches that is one sample away and between the bounds, if ``end`` is none itself."""
    near = [edge for edge in edges if abs(edge - end) == 1 and low < edge < high]
    return near[0] if near and end not in edges else end


def _in_samples(batch: Any) -> bool:
    """Whether all tensors of a batch have a row for each sample: a batch of graphs, say, has not, and stays whole."""
    size = -1 if isinstance(batch, Uncut) else batch_size(batch)
    return all(by_sample(value, size) for value in flat(batch) if isinstance(value, Tensor) and value.ndim)


def _whole(batch: Any) -> Any:
    """The batch, if a tensor is found in it."""
    if not any(isinstance(value, Tensor) for value in flat(batch)):
        raise DataError(
            f"received a calibration batch of type {type(batch).__name__} in which no tensor is found; expected a "
            "tensor, or tuples, lists and mappings that hold some; convert the batches"
        )
    return batch


def _first(read: Iterator[Any], most: int | None, passed: bool) -> Iterator[Any]:
    """Copies of the batches with the first ``most`` samples; a loader may refill the same memory, and may never end.

    Args:
        passed: else what lies in the place of labels may be something else, such as lengths.

    Raises:
        DataError: some are left, and these are in the order of their labels, so that classes are missing. Not where
            they may be so by chance.

    Warns:
        of all labels alike where some are left: they may be, or may be the first class of many; of their order where
        they may be no labels.
    """
    room, labels = math.inf if most is None else most, list[Tensor]()
    for batch in read:
        size = batch_size(batch)
        if size and not room:
            break
        taken = copied(rows_of(batch, slice(int(room))) if size > room else batch)
        room -= min(room, size)
        if (found := labels_of(taken)) is not None:
            labels.append(found.cpu())
        yield taken
        if size > batch_size(taken):
            break
    else:
        return
    seen = torch.cat(labels) if labels else torch.zeros(0)
    told = (
        f"received calibration batches of which the first {most} samples have labels {{}}; expected samples of all "
        "classes, as no more are read; shuffle the loader, or pass images=None to read all of it"
    )
    if sorted_by_class(seen) and _chance(seen) < UNLIKELY:
        said = told.format(f"in their order, from {int(seen[0])} to {int(seen[-1])}")
        if passed:
            raise DataError(said)
    elif passed and len(seen) and bool((seen == seen[0]).all()):
        said = told.format(f"{int(seen[0])} alone")
    else:
        return
    warn(said)


def _chance(labels: Tensor) -> float:
    """How often labels [n] come in their order if they are shuffled."""
    counts = labels.unique(return_counts=True)[1].tolist()
    return math.exp(sum(math.lgamma(count + 1) for count in counts) - math.lgamma(len(labels) + 1))


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
    return [rows_of(together, part) for part in order.split([len(values) for values in each])]


def _as_passed(batch: Any) -> Any:
    """Of a tuple or list the images and, if there is one for each, the labels: file names and the like, which differ
    from batch to batch, would keep batches from being joined.
    """
    found = opened(batch)
    if not isinstance(found, (tuple, list)) or not found or not isinstance(found[0], Tensor):
        return batch
    images, labels = found[0], found[1] if len(found) > 1 else None
    each = isinstance(labels, Tensor) and images.ndim > 0 and by_sample(labels, batch_size(batch))
    taken = (images, labels) if each else (images,)
    return replace(batch, batch=taken) if isinstance(batch, Uncut) else taken


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
