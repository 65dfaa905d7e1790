"""The support set: labelled images of the new task, in whatever form they come, as batches that can be run twice."""

from collections.abc import Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from hypercompress.architecture.names import one_line
from hypercompress.errors import DataError
from hypercompress.running.calling import ordinary
from hypercompress.running.nested import labels_of
from hypercompress.transfer.ridge import check_labels

BATCH = 64  # images run together, where the caller did not batch them


@dataclass(frozen=True)
class Support:
    """Labelled batches, the same images each time they are iterated, in whatever order.

    Args:
        batches: ``(images, labels)``, labels from 0.
        classes: how many; 0: not known yet.
        dtype: that images of floating point are cast to; ``None``: as they come.
    """

    batches: Iterable[Any]
    classes: int
    dtype: torch.dtype | None = None

    @property
    def fixed(self) -> bool:
        """Whether the images come in the same order each time: batches in memory, and not a loader that may mix."""
        return isinstance(self.batches, list)

    @property
    def images(self) -> int | None:
        """How many there are; ``None`` where a loader does not say."""
        if isinstance(self.batches, list):
            known = [labels for batch in self.batches if (labels := labels_of(batch)) is not None]
            return sum(map(len, known)) if len(known) == len(self.batches) else None
        dataset = getattr(self.batches, "dataset", None)
        return len(dataset) if isinstance(dataset, Sized) else None

    def on(self, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches on a device, one at a time; empty ones are left out.

        Raises:
            DataError: a batch without labels, or with one of a class that is none of them; no image at all, as from
                what can be run only once.
        """
        nothing = True
        for batch in self.batches:
            labels = labels_of(batch)
            if labels is None:
                raise DataError(
                    "received a support batch without labels; expected (images, labels) with labels from 0; sort the "
                    "images into class sub-folders"
                )
            if not len(labels):
                continue
            nothing = False
            if self.classes and int(labels.max()) >= self.classes:
                raise DataError(
                    f"received the label {int(labels.max())} for {self.classes} classes; expected 0 to "
                    f"{self.classes - 1}; number the classes from 0"
                )
            images = batch[0].detach().to(device)
            if self.dtype is not None and images.is_floating_point():
                images = images.to(self.dtype)
            yield ordinary(images), ordinary(labels.to(device, torch.int64))
        if nothing:
            raise DataError(
                "received support batches without an image; expected the same images each time that they are run; "
                "check the loader, or pass a list of batches"
            )


def as_support(
    support: Tensor | Iterable[Any],
    labels: Tensor | Sequence[int] | None,
    shots: int | None,
    seed: int,
    names: Sequence[str] | None,
) -> Support:
    """A support set of whatever the caller has.

    Args:
        support: images [n, c, h, w], or batches ``(images, labels)``. A loader is run anew for each pass; without
            ``names``, or with ``shots``, everything is kept in memory.
        labels: of the images; ``None`` with batches.
        shots: keep so many images of each class, drawn by ``seed``; ``None``: all.
        names: of the classes by label; ``None``: as many as the largest label says.

    Raises:
        DataError: no labels or none that fit, labels beside what is no tensor, fewer than two classes, a class without
            an image or with fewer than ``shots``.
    """
    if labels is None and isinstance(support, Tensor):
        raise DataError("received support images without labels; expected one label for each image; pass labels")
    if labels is None and names is not None and shots is None and iter(support) is not support:
        return Support(support, len(names))
    if labels is None:
        every = Support(list(support), 0).on(torch.device("cpu"))
        images, labels = (torch.cat(column) for column in zip(*every, strict=True))
    else:
        if not isinstance(support, Tensor):
            raise DataError(
                f"received labels beside support images of type {type(support).__name__}; expected one tensor "
                "[n, c, h, w] of images; pass torch.as_tensor(images), or no labels where batches bring them"
            )
        images, labels = support, whole_numbers(labels)
        if len(images) != len(labels) or not len(labels) or labels_of((images, labels)) is None:
            raise DataError(
                f"received {len(labels)} labels of {labels.dtype} for {len(images)} support images; expected a whole "
                "number from 0 for each of one image or more; pass the labels of these images"
            )
    classes = len(names) if names is not None else int(labels.max()) + 1
    check_labels(labels, classes, names)
    chosen = torch.arange(len(labels)) if shots is None else draw_shots(labels, shots, seed, names)
    # Mixed, because what comes sorted by class makes bad batches for ordinary steps.
    chosen = chosen[torch.randperm(len(chosen), generator=torch.Generator().manual_seed(seed))]
    images, labels = images[chosen.to(images.device)], labels[chosen.to(labels.device)]
    return Support(list(zip(images.split(BATCH), labels.split(BATCH), strict=True)), classes)


def whole_numbers(labels: Any) -> Tensor:
    """Labels as a tensor [n].

    Raises:
        DataError: no numbers, or not one row of them.
    """
    try:
        found = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"received labels of type {type(labels).__name__} that are no numbers ({one_line(error)}); expected a "
            "whole number from 0 for each image; number the classes"
        ) from error
    if found.ndim != 1:
        raise DataError(
            f"received labels of shape {list(found.shape)}; expected [n], a whole number from 0 for each image; pass "
            "one label an image"
        )
    return found


def draw_shots(
    labels: Int[Tensor, " n"], shots: int, seed: int, names: Sequence[str] | None = None
) -> Int[Tensor, " m"]:
    """Places of ``shots`` images of each class, class after class; the same for the same seed.

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
        raise DataError(
            f"received {shots} shots for classes with fewer images: {', '.join(few)}; expected at least {shots} images "
            "of each class; add images or ask for fewer shots"
        )
    return torch.cat(chosen)
