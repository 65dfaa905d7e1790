"""The images that a system trains and validates on: in memory or prepared as they are used, augmented by the batch.

Sets are asked for places counted on from epoch to epoch: that of image i of n in epoch e is ``e n + i``.

Shape letters: ``n`` images in the set; ``b`` images in a batch; ``c h w`` channels, height and width of one image.
"""

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor
from torch.utils.data import Dataset

from hypercompress.data import ImageData, Preprocess, loader, open_data
from hypercompress.data.folder import FileImages
from hypercompress.data.images import UNLABELLED
from hypercompress.data.numbering import labels_in
from hypercompress.errors import DataError
from lightning_modules.randomness import generator_at, seeded

Augment = Literal["none", "flip", "shift", "crop"]
CACHE_BYTES = 2**30  # a set whose float32 tensors fit into so much memory is prepared once
SHIFT = 1 / 14  # of the side: 2 pixels of 28


class CachedImages(Dataset[tuple[Tensor, Tensor]]):
    """Prepared images in memory, fetched and augmented by the batch.

    Args:
        images, labels: the prepared set; never changed.
        classes: names of the classes; empty when unlabelled.
        augment: what to do to a fetched batch.

    Attributes:
        digest: of what the files are called and how large they are, in their order; empty where they are none.
    """

    digest = ""

    def __init__(
        self,
        images: Float[Tensor, "n c h w"],
        labels: Int64[Tensor, " n"],
        classes: Sequence[str] = (),
        augment: Augment = "none",
    ) -> None:
        self.images, self.labels, self.classes, self.augment = images, labels, tuple(classes), augment

    def relabelled(self, classes: Sequence[str]) -> "CachedImages":
        """The set numbered by ``classes``, which hold all of its own (`labels_in`); by none: without labels."""
        labels = torch.full_like(self.labels, UNLABELLED)
        if classes:
            labels = torch.tensor(labels_in(classes, self.classes))[self.labels]
        return CachedImages(self.images, labels, classes, self.augment)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Float[Tensor, "b c h w"], Int64[Tensor, " b"]]:
        """torch's loader prefers this to one call per image."""
        chosen = torch.tensor([index % len(self) for index in indices])
        return augmented(self.images[chosen], indices, self.augment), self.labels[chosen]


class PreparedImages(Dataset[tuple[Tensor, Tensor]]):
    """Images that do not stay in memory: prepared as they are fetched. The batches are those of `CachedImages`.

    Args:
        data: the set; it crops by itself where ``augment`` says so.
        augment: what to do to a fetched batch.

    Attributes:
        digest: as of `CachedImages`.
    """

    digest = ""

    def __init__(self, data: ImageData, augment: Augment = "none") -> None:
        self.data, self.classes, self.augment = data, data.classes, augment

    def relabelled(self, classes: Sequence[str]) -> "PreparedImages":
        """As of `CachedImages`."""
        return PreparedImages(self.data.numbered(classes) if classes else self.data.unlabelled(), self.augment)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        with seeded(index):
            image, label = self.data[index % len(self)]
        return image, torch.tensor(label)

    def __getitems__(self, indices: list[int]) -> tuple[Float[Tensor, "b c h w"], Int64[Tensor, " b"]]:
        """torch's loader prefers this to one call per image."""
        items = [self[index] for index in indices]
        images = torch.stack([image for image, _ in items])
        return augmented(images, indices, self.augment), torch.stack([label for _, label in items])


Images = CachedImages | PreparedImages


def open_part(
    text: str, preprocess: Preprocess, train: bool, augment: Augment, limit: int | None = None, test: bool = False
) -> Images:
    """The training or the held-out images, in memory if they fit and are not cropped at random.

    Args:
        text: see `hypercompress.data.open_data`.
        limit: a random subset of so many, the same on each call and in each process; all if there are fewer.
        test: of the held-out images those for a test, where a folder has both.

    Raises:
        DataError: unknown or unreadable data, or a limit below 1.
    """
    whole = open_data(text, preprocess, train=train, augment=augment == "crop", test=test)
    data = limited(whole, limit)
    size = 4 * len(data) * torch.Size(preprocess.input_size).numel()
    if augment == "crop" or size > CACHE_BYTES:
        images: Images = PreparedImages(data, augment)
    else:
        known = (text, preprocess, train, limit, *_files(whole))
        images = CachedImages(*_prepared(_Opened(known, data)), data.classes, augment)
    images.digest = _digest(whole)
    return images


def _digest(data: ImageData) -> str:
    """Of the names and sizes of an image folder's files and of their classes' folders, wherever that lies."""
    source = data.source
    if not isinstance(source, FileImages):
        return ""
    found = hashlib.sha256()
    for path, label in zip(source.paths, source.labels, strict=True):
        found.update(f"{label} {path.stat().st_size} {path.name}\n".encode(errors="surrogateescape"))
    return found.hexdigest()[:12]


def limited(data: ImageData, limit: int | None) -> ImageData:
    """A random subset of ``limit`` images, the same for the same set; all of them if there are fewer.

    Raises:
        DataError: a limit below 1.
    """
    if limit is None or limit >= len(data):
        return data
    if limit < 1:
        raise DataError(f"received a limit of {limit} images; expected at least 1; raise it or leave it out")
    return data.only(torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[:limit].tolist())


@dataclass(frozen=True)
class _Opened:
    """A set that was opened; two are the same if ``known`` is.

    Args:
        known: what was asked for, and what lies on disk.
        data: the images.
    """

    known: tuple[Hashable, ...]
    data: ImageData = field(compare=False)


def _files(data: ImageData) -> tuple[Hashable, ...]:
    """What lies on disk now: the working folder, and each file of an image folder with its label, size and time."""
    source, here = data.source, Path.cwd()
    if not isinstance(source, FileImages):
        return (here,)
    found = ((str(path), label, path.stat()) for path, label in zip(source.paths, source.labels, strict=True))
    return (here, *((path, label, at.st_size, at.st_mtime_ns, at.st_ino) for path, label, at in found))


@lru_cache(maxsize=4)
def _prepared(opened: _Opened) -> tuple[Tensor, Tensor]:
    """Every image of a set, or of its subset. Remembered, so that a zoo prepares its images once."""
    batches = list(loader(opened.data, batch_size=1024))
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def augmented(images: Float[Tensor, "b c h w"], indices: list[int], augment: Augment) -> Float[Tensor, "b c h w"]:
    """A batch flipped and shifted as ``augment`` says; what is drawn follows from its places, and so from the
    epoch: else a batch of one image would be flipped in all of them or in none.

    Random crops need the whole image, so they are made before (`Preprocess.transform`), flips included.
    """
    random = generator_at(*indices)
    if augment in ("flip", "shift"):
        images = flipped(images, random)
    if augment == "shift":
        images = shifted(images, max(1, round(images.shape[-1] * SHIFT)), random)
    return images


def flipped(images: Float[Tensor, "b c h w"], random: torch.Generator) -> Float[Tensor, "b c h w"]:
    """Each image mirrored left to right with probability one half."""
    mirror = torch.rand(len(images), generator=random) < 0.5
    return torch.where(mirror[:, None, None, None], images.flip(-1), images)


def shifted(images: Float[Tensor, "b c h w"], most: int, random: torch.Generator) -> Float[Tensor, "b c h w"]:
    """Each image moved by -most to +most pixels, independently in both directions; the edge is repeated."""
    count, channels, height, width = images.shape
    padded = F.pad(images, (most, most, most, most), mode="replicate")
    start = torch.randint(0, 2 * most + 1, (2, count, 1), generator=random)
    rows, columns = start[0] + torch.arange(height), start[1] + torch.arange(width)
    image, channel = torch.arange(count)[:, None, None, None], torch.arange(channels)[None, :, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
