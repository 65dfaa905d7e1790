"""A set of images with labels, and the loader that batches it.

Shape letters: ``b`` images in a batch; ``c h w`` channels, height and width of one image.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset, default_collate

from hypercompress.data.numbering import labels_in
from hypercompress.errors import DataError

UNLABELLED = -1


@runtime_checkable
class ImageSource(Protocol):
    """Where images come from: torchvision's data sets are sources as they are."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> tuple[Image.Image, int]: ...


class ImageData(Dataset[tuple[Tensor, int]]):
    """Preprocessed images. ``data[i]`` is the image [c, h, w] and its label; -1 where there are no labels.

    Args:
        source: the images and labels.
        transform: from an image to a tensor [c, h, w]; see `Preprocess.transform`.
        classes: names of the classes by label; empty when unlabelled.
        skipped: names of the images that could not be read.
    """

    def __init__(
        self,
        source: ImageSource,
        transform: Callable[[Image.Image], Float[Tensor, "c h w"]],
        *,
        classes: Sequence[str],
        skipped: Sequence[str] = (),
    ) -> None:
        self.source = source
        self.transform = transform
        self.classes: tuple[str, ...] = tuple(classes)
        self.labelled = bool(self.classes)
        self.skipped: list[str] = list(skipped)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def labels(self) -> Int64[Tensor, " n"]:
        """Of all images; no image is decoded where the source lists its labels."""
        listed = getattr(self.source, "labels", getattr(self.source, "targets", None))
        every = [self.source[index][1] for index in range(len(self))] if listed is None else listed
        return torch.as_tensor(every).long()

    def only(self, chosen: Sequence[int]) -> "ImageData":
        """The images at these places, in this order."""
        return ImageData(_Part(self.source, chosen), self.transform, classes=self.classes, skipped=self.skipped)

    def unlabelled(self) -> "ImageData":
        """The images without their labels."""
        source = _Relabelled(self.source, [UNLABELLED] * len(self.classes))
        return ImageData(source, self.transform, classes=(), skipped=self.skipped)

    def numbered(self, names: Sequence[str]) -> "ImageData":
        """The images with the labels that their classes have among ``names``, which holds all of them (`labels_in`)."""
        source = _Relabelled(self.source, labels_in(names, self.classes))
        return ImageData(source, self.transform, classes=names, skipped=self.skipped)

    def __getitem__(self, index: int) -> tuple[Float[Tensor, "c h w"], int]:
        image, label = self.source[index]
        return self.transform(image), int(label)


class _Part:
    """Some images of a source."""

    def __init__(self, source: ImageSource, chosen: Sequence[int]) -> None:
        self.source, self.chosen = source, list(chosen)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.source[self.chosen[index]]


class _Relabelled:
    """A source with other labels: ``new[old]``."""

    def __init__(self, source: ImageSource, new: Sequence[int]) -> None:
        self.source, self.new = source, list(new)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        image, label = self.source[index]
        return image, self.new[int(label)]


def loader(
    data: ImageData,
    *,
    batch_size: int,
    shuffle: bool = False,
    seed: int = 0,
    limit: int | None = None,
    workers: int = 0,
    dtype: torch.dtype = torch.float32,
) -> DataLoader[tuple[Tensor, int]]:
    """Batches ``(images [b, c, h, w], labels [b])``; the last one may be smaller.

    Args:
        batch_size: images in a batch, at least 1.
        shuffle: a new order each epoch, the same for the same seed.
        seed: of the order and of the subset.
        limit: use a random subset of so many images, at least 1; all of them if there are fewer.
        workers: processes that prepare images; 0 prepares them in this one.
        dtype: of the images: that of the model which takes them.

    Raises:
        DataError: a number below its bound.
    """
    bounds = {"batch_size": (batch_size, 1), "limit": (1 if limit is None else limit, 1), "workers": (workers, 0)}
    low = [f"{name} {value} (at least {least})" for name, (value, least) in bounds.items() if value < least]
    if low:
        raise DataError(f"received {', '.join(low)}; expected numbers from the bound in brackets; raise them")
    generator = torch.Generator().manual_seed(seed)
    chosen: Dataset[tuple[Tensor, int]] = data
    if limit is not None and limit < len(data):
        chosen = Subset(data, torch.randperm(len(data), generator=generator)[:limit].tolist())
    return DataLoader(
        chosen,
        batch_size=batch_size,
        shuffle=shuffle,
        generator=generator,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=partial(_collate, dtype=dtype),
    )


def _collate(
    items: list[tuple[Tensor, int]], dtype: torch.dtype
) -> tuple[Float[Tensor, "b c h w"], Int64[Tensor, " b"]]:
    """torch's own batches are lists; a tuple is what `compress` and its kin take for one input and its label."""
    images, labels = default_collate(items)
    return images.to(dtype), labels
