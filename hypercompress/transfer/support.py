"""The support set: labelled images of the new task, in whatever form they come, as batches that can be run twice."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler

from hypercompress.errors import DataError, listed, warn
from hypercompress.running.calling import ordinary
from hypercompress.running.nested import labels_of, sorted_by_class
from hypercompress.transfer.given import Key, first_ones, whole_numbers
from hypercompress.transfer.ridge import check_labels

BATCH = 64  # images run together, where the caller did not batch them, and at most


@dataclass(frozen=True)
class Support:
    """Labelled batches, the same images each time they are iterated, in whatever order.

    Args:
        batches: ``(images, labels)``, labels from 0.
        classes: how many; 0: not known yet.
        dtype: that images of floating point are cast to; ``None``: as they come.
        copied: what came more than once until now, see `first_ones`. Of batches in memory nothing does any more.
    """

    batches: Iterable[Any]
    classes: int
    dtype: torch.dtype | None = None
    copied: set[Key] = field(default_factory=set, repr=False)

    @property
    def fixed(self) -> bool:
        """Whether the images come in the same order each time: batches in memory, and not a loader that may mix."""
        return isinstance(self.batches, list)

    @property
    def images(self) -> int | None:
        """How many are read in a pass; ``None`` where a loader does not say."""
        if isinstance(self.batches, list):
            known = [labels for batch in self.batches if (labels := labels_of(batch)) is not None]
            return sum(map(len, known)) if len(known) == len(self.batches) else None
        drawn = _batch_sampler(self.batches) if _own_batches(self.batches) else self.batches
        if drawn is None:
            return None
        # A sampler may leave some out.
        parts = (getattr(drawn, "sampler", None), getattr(self.batches, "dataset", None))
        count = next((len(part) for part in parts if isinstance(part, Sized)), None)
        size = getattr(drawn, "batch_size", None)
        if count is None or not size or not getattr(drawn, "drop_last", False):
            return count
        return count - count % int(size)

    def on(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches on a device, one at a time; empty ones are left out, large ones cut, and of an image that a
        loader brings twice the copy.

        Raises:
            DataError: a batch without labels, with fewer or more than images, or with one of a class that is none of
                them; no image at all, as from what can be run only once.
        """
        nothing, seen = True, set[Key]()
        for batch in self.batches:
            labels = labels_of(batch)
            if labels is None:
                raise DataError(
                    f"received a support batch without labels ({_told(batch)}); expected (images, labels), with a "
                    "whole number from 0 for each image; pass such batches, or sort the images of a folder into class "
                    "sub-folders"
                )
            if not len(labels):
                continue
            nothing = False
            if self.classes and int(labels.max()) >= self.classes:
                raise DataError(
                    f"received the label {int(labels.max())} for {self.classes} classes; expected 0 to "
                    f"{self.classes - 1}; number the classes from 0"
                )
            if len(batch[0]) != len(labels):
                raise DataError(
                    f"received a support batch of {len(batch[0])} images and {len(labels)} labels; expected as many of "
                    "both; check the loader"
                )
            for some, named in zip(*self._cut(batch[0].detach(), labels, seen), strict=True):
                images = some.to(device)
                if self.dtype is not None and images.is_floating_point():
                    images = images.to(self.dtype)
                yield ordinary(images), ordinary(named.to(device, torch.int64))
        if nothing:
            raise DataError(
                "received support batches without an image; expected the same images each time that they are run; "
                "check the loader, or pass a list of batches"
            )

    def _cut(self, images: Tensor, labels: Tensor, seen: set[Key]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """A batch in parts of `BATCH` at most; of one that copies alone make up none."""
        if not self.fixed:
            new = first_ones(images, labels, seen, self.copied)
            if len(new) < len(labels):
                images, labels = images[new.to(images.device)], labels[new.to(labels.device)]
        return (images.split(BATCH), labels.split(BATCH)) if len(labels) else ((), ())


def as_support(
    support: Any,
    labels: Tensor | Sequence[int] | None,
    shots: int | None,
    seed: int,
    names: Sequence[str] | None,
) -> Support:
    """A support set of whatever the caller has.

    Args:
        support: images [n, c, h, w], batches ``(images, labels)``, one such pair, or a set of labelled images. With
            ``names`` and without ``shots`` what brings its batches in an order of its own, such as a loader that
            shuffles, is run anew for each pass; everything else is kept in memory, and mixed.
        labels: of the images; ``None`` where they come with them.
        shots: keep so many images of each class, drawn by ``seed``; ``None``: all.
        names: of the classes by label; ``None``: as many as the largest label says.

    Raises:
        DataError: no labels or none that fit, labels beside what is no tensor, fewer than two classes, a class without
            an image or with fewer than ``shots``, a table of images and labels.
    """
    if labels is None:
        support, labels = _unwrapped(support)
    if isinstance(support, Mapping):
        raise DataError(
            f"received a support set that is {_told(support)}; expected images and labels, or batches of both; pass "
            "them by themselves, such as adapt(model, data['images'], data['labels'])"
        )
    if labels is None and isinstance(support, Tensor):
        raise DataError("received support images without labels; expected one label for each image; pass labels")
    if labels is None and names is not None and shots is None and _mixes(support):
        return Support(support, len(names))
    size = BATCH
    if labels is None:
        parts = list(Support(list(support), 0).on(torch.device("cpu")))
        size = max(len(part) for _, part in parts)
    else:
        if not isinstance(support, Tensor):
            raise DataError(
                f"received labels beside support images of type {type(support).__name__}; expected one tensor "
                "[n, c, h, w] of images; pass torch.as_tensor(images), or no labels where batches bring them"
            )
        given = whole_numbers(labels)
        found = labels_of((support, given))
        if len(support) != len(given) or not len(given) or found is None:
            raise DataError(
                f"received {len(given)} labels of {given.dtype} for {len(support)} support images; expected a whole "
                "number from 0 for each of one image or more; pass the labels of these images"
            )
        parts = [(support, found.long())]
    return _in_memory(parts, shots, seed, names, size if size > 1 else BATCH)  # one is what loaders have if not asked


def _unwrapped(support: Any) -> tuple[Any, Tensor | None]:
    """Images and labels of a pair of both; of a set of labelled images a loader, whose batches bring them."""
    if isinstance(support, Dataset) and not isinstance(support, IterableDataset):
        return DataLoader(support, batch_size=BATCH), None
    if isinstance(support, (tuple, list)) and len(support) == 2 and isinstance(support[0], Tensor):
        labels = labels_of(support)
        return (support, None) if labels is None else (support[0], labels)
    return support, None


def _mixes(support: Any) -> bool:
    """Whether it can be run again, and its images may come in another order then: not where they are in memory, or a
    loader takes them as they lie, which is class after class in a folder.
    """
    if isinstance(support, (list, tuple, Iterator)):
        return False
    drawn = _batch_sampler(support) if _own_batches(support) else support
    return not isinstance(getattr(drawn, "sampler", None), SequentialSampler)


def _own_batches(loader: Any) -> bool:
    """Whether the caller said which images make each batch (``batch_sampler``): the loader's own sampler says nothing
    then.
    """
    return getattr(loader, "batch_size", None) is None and getattr(loader, "batch_sampler", None) is not None


def _batch_sampler(loader: Any) -> BatchSampler | None:
    """torch's, which takes images as its sampler draws them; ``None``: there is none, or it is of another kind."""
    found = getattr(loader, "batch_sampler", None)
    return found if type(found) is BatchSampler else None


def _in_memory(
    parts: Sequence[tuple[Tensor, Tensor]], shots: int | None, seed: int, names: Sequence[str] | None, size: int
) -> Support:
    """Images and labels in batches of ``size``, mixed: what comes sorted by class makes bad batches for ordinary steps.
    Images of one shape make a batch, and copies are left out.
    """
    shapes = list(dict.fromkeys(images.shape[1:] for images, _ in parts))
    alike = [[part for part in parts if part[0].shape[1:] == shape] for shape in shapes]
    groups = [[torch.cat(column) for column in zip(*some, strict=True)] for some in alike]
    labels = torch.cat([found for _, found in groups])
    classes = len(names) if names is not None else _numbered(labels)
    check_labels(labels, classes, names)
    seen, copied, start = set[Key](), set[Key](), 0
    new = list[Tensor]()
    for images, found in groups:
        new.append(start + first_ones(images, found, seen, copied))
        start += len(images)
    chosen = torch.cat(new)
    if shots is not None:
        chosen = chosen[draw_shots(labels[chosen.to(labels.device)], shots, seed, names, copied=bool(copied))]
    mixing = torch.Generator().manual_seed(seed)
    chosen = chosen[torch.randperm(len(chosen), generator=mixing)]
    batches, start = list[tuple[Tensor, Tensor]](), 0
    for images, found in groups:
        mine = chosen[(chosen >= start) & (chosen < start + len(images))] - start
        split = (images[mine.to(images.device)].split(size), found[mine.to(found.device)].split(size))
        batches += zip(*split, strict=True)
        start += len(images)
    if len(groups) > 1:
        batches = [batches[place] for place in torch.randperm(len(batches), generator=mixing).tolist()]
    return Support(batches, classes, copied=copied)


def _numbered(labels: Int[Tensor, " n"]) -> int:
    """How many classes labels without names number, from 0 and each of them once: as large as a label may be, no more
    than these are ever counted.

    Raises:
        DataError: some numbers between are left out.
    """
    found = labels.unique()
    if len(found) > 1 and int(found[-1]) >= len(found):
        raise DataError(
            f"received labels {listed(found.tolist())} ({len(found)} classes, numbered up to {int(found[-1])}); "
            f"expected 0 to {len(found) - 1}; pass torch.unique(labels, return_inverse=True)[1]"
        )
    return len(found)


def warn_if_sorted(support: Support, labels: Int[Tensor, " n"]) -> None:
    """Warn of steps on batches that are sorted by class and cannot be mixed here, because they are run anew.

    Args:
        labels: in the order of a pass.
    """
    if support.fixed or not sorted_by_class(labels):
        return
    warn(
        "received support batches in the order of their labels; expected mixed ones, as each step sees one batch; "
        "shuffle the loader, or pass list(loader)",
    )


def _told(batch: Any) -> str:
    """What a batch is, in few words."""
    if isinstance(batch, Mapping):
        return f"a {type(batch).__name__} of {', '.join(map(str, batch))}"
    if not isinstance(batch, (tuple, list)):
        return f"a {type(batch).__name__} alone"
    if len(batch) < 2 or not isinstance(batch[1], Tensor):
        return f"a {type(batch).__name__} of {', '.join(type(part).__name__ for part in batch) or 'nothing'}"
    labels = batch[1]
    if labels.ndim != 1 or labels.is_floating_point():
        return f"whose second part is {labels.dtype} {list(labels.shape)}"
    return "labels below 0 mean that they are unknown"


def draw_shots(
    labels: Int[Tensor, " n"], shots: int, seed: int, names: Sequence[str] | None = None, *, copied: bool = False
) -> Int[Tensor, " m"]:
    """Places of ``shots`` images of each class, class after class; the same for the same seed.

    Args:
        copied: whether copies were left out, for the message.

    Raises:
        DataError: ``shots`` below 1, or a class with fewer.
    """
    if shots < 1:
        raise DataError(f"received {shots} shots; expected at least 1; pass the number of images of each class to use")
    generator, chosen, few = torch.Generator().manual_seed(seed), [], []
    for label in labels.unique().tolist():
        found = (labels == label).nonzero().flatten().cpu()
        if len(found) < shots:
            few.append(f"{names[label] if names else label} ({len(found)})")
        chosen.append(found[torch.randperm(len(found), generator=generator)[:shots]])
    if few:
        without = ", copies left out" if copied else ""
        raise DataError(
            f"received {shots} shots for classes with fewer images{without}: {', '.join(few)}; expected at least "
            f"{shots} images of each class; add images or ask for fewer shots"
        )
    return torch.cat(chosen)
