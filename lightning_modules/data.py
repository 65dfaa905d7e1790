"""One data module for every system: an image folder or a registered data set, prepared as the model wants it.

Shape letters: ``n`` images in the set; ``b`` images in a batch; ``c h w`` channels, height and width of one image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from hypercompress.data import ImageData, Preprocess, loader, open_data
from hypercompress.errors import DataError
from hypercompress.models import load_model

Augment = Literal["none", "flip", "shift", "crop"]
CACHE_BYTES = 2**30  # a set whose float32 tensors fit into so much memory is prepared once
SHIFT = 1 / 14  # of the side: 2 pixels of 28


@dataclass(frozen=True)
class Inputs:
    """Where the preparation of the images comes from: ``like``, else the model in training; then the overrides.

    Args:
        like: a timm name or a student folder.
        input_size: channels, height and width in pixels.
        mean, std: one value per channel, or one for all, of pixels scaled to [0, 1].
    """

    like: str | None = None
    input_size: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def preprocess(self, network: nn.Module | None = None) -> Preprocess:
        """The preparation; ``network`` is the model in training, if there is one.

        Raises:
            DataError: something is missing, or does not fit the model's channels.
        """
        if self.like is not None:
            network, _ = load_model(self.like, pretrained=False)
        return Preprocess.of(network or nn.Identity(), self.input_size, self.mean, self.std)


class ImageDataModule(LightningDataModule):
    """Batches ``(images [b, c, h, w], labels [b])``; the labels of an unlabelled set are -1.

    A set of up to 1 GiB of tensors is prepared once and kept in memory, and augmented by the batch: on two cores that
    is thirty times faster than preparing 28 x 28 images one by one in each epoch.

    Args:
        data: an image folder or ``name[:root]``; see `hypercompress.data.open_data`.
        val_data: the same for validation; without it the held-out part of ``data`` (of a folder without parts: all).
        inputs: how the images are prepared; by default as the model in training says.
        batch_size: images in a batch, on each device.
        limit: train on a random subset of so many images.
        val_limit: validate on a random subset of so many images.
        augment: ``flip`` mirrors half of the images, ``shift`` also moves each by up to 1/14 of its side, ``crop`` is
            timm's random crop, flip and change of colour (drawn image by image, so nothing is kept in memory).
        workers: processes that prepare the images of sets that are too large for memory.

    Raises:
        DataError: at ``setup``: unknown or unreadable data, or a preparation that does not fit the model.
    """

    def __init__(
        self,
        data: str,
        val_data: str | None = None,
        inputs: Inputs | None = None,
        batch_size: int = 128,
        limit: int | None = None,
        val_limit: int | None = None,
        augment: Augment = "none",
        workers: int = 0,
    ) -> None:
        super().__init__()
        self.data, self.val_data, self.inputs = data, val_data, inputs or Inputs()
        self.batch_size, self.limit, self.val_limit = batch_size, limit, val_limit
        self.augment, self.workers = augment, workers
        self._train: DataLoader[Any] | None = None
        self._val: DataLoader[Any] | None = None

    def setup(self, stage: str) -> None:
        """Open what the stage needs, once."""
        preprocess = self.preprocess()
        if stage == "fit" and self._train is None:
            self._train = self._loader(open_part(self.data, preprocess, True, self.augment), train=True)
        if self._val is None:
            self._val = self._loader(open_part(self.val_data or self.data, preprocess, False, "none"), train=False)

    def preprocess(self) -> Preprocess:
        """How the images are prepared."""
        system = self.trainer.lightning_module if self.trainer is not None else None
        return self.inputs.preprocess(getattr(system, "network", None))

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled, augmented; the last, smaller batch is dropped."""
        return _opened(self._train)

    def val_dataloader(self) -> DataLoader[Any]:
        """In order, not augmented."""
        return _opened(self._val)

    def test_dataloader(self) -> DataLoader[Any]:
        """As for validation."""
        return self.val_dataloader()

    def _loader(self, data: "CachedImages | ImageData", *, train: bool) -> DataLoader[Any]:
        limit = self.limit if train else self.val_limit
        if isinstance(data, CachedImages):
            data = data.subset(limit)
            return DataLoader(
                data, self.batch_size, shuffle=train, drop_last=train and len(data) > self.batch_size, collate_fn=_batch
            )
        return loader(data, batch_size=self.batch_size, shuffle=train, limit=limit, workers=self.workers)


class CachedImages(Dataset[tuple[Tensor, Tensor]]):
    """Prepared images in memory, fetched and augmented by the batch.

    Args:
        images, labels: the prepared set; never changed.
        classes: names of the classes; empty when unlabelled.
        augment: what to do to a fetched batch.
    """

    def __init__(
        self,
        images: Float[Tensor, "n c h w"],
        labels: Int64[Tensor, " n"],
        classes: Sequence[str] = (),
        augment: Augment = "none",
    ) -> None:
        self.images, self.labels, self.classes, self.augment = images, labels, tuple(classes), augment

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def __getitems__(self, indices: list[int]) -> tuple[Float[Tensor, "b c h w"], Int64[Tensor, " b"]]:
        """torch's loader prefers this to one call per image."""
        chosen = torch.tensor(indices)
        images = self.images[chosen]
        if self.augment != "none":
            images = flipped(images)
        if self.augment == "shift":
            images = shifted(images, max(1, round(images.shape[-1] * SHIFT)))
        return images, self.labels[chosen]

    def subset(self, limit: int | None) -> "CachedImages":
        """A random subset, the same on each call and each process."""
        if limit is None or limit >= len(self):
            return self
        if limit < 1:
            raise DataError(f"received a limit of {limit} images; expected at least 1; raise it or leave it out")
        chosen = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[:limit]
        return CachedImages(self.images[chosen], self.labels[chosen], self.classes, self.augment)


def open_part(text: str, preprocess: Preprocess, train: bool, augment: Augment) -> CachedImages | ImageData:
    """The training or the held-out images, in memory if they fit and are not cropped at random."""
    data = open_data(text, preprocess, train=train, augment=augment == "crop")
    size = 4 * len(data) * torch.Size(preprocess.input_size).numel()
    if augment == "crop" or size > CACHE_BYTES:
        return data
    images, labels = _prepared(text, preprocess, train)
    return CachedImages(images, labels, data.classes, augment)


@lru_cache(maxsize=4)
def _prepared(text: str, preprocess: Preprocess, train: bool) -> tuple[Tensor, Tensor]:
    """Every image of a set. Remembered, so that a zoo prepares its images once."""
    data = open_data(text, preprocess, train=train)
    batches = list(loader(data, batch_size=1024))
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def flipped(images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
    """Each image mirrored left to right with probability one half."""
    mirror = torch.rand(len(images), device=images.device) < 0.5
    return torch.where(mirror[:, None, None, None], images.flip(-1), images)


def shifted(images: Float[Tensor, "b c h w"], most: int) -> Float[Tensor, "b c h w"]:
    """Each image moved by -most to +most pixels, independently in both directions; the edge is repeated."""
    count, channels, height, width = images.shape
    padded = F.pad(images, (most, most, most, most), mode="replicate")
    start = torch.randint(0, 2 * most + 1, (2, count, 1))
    rows, columns = start[0] + torch.arange(height), start[1] + torch.arange(width)
    image, channel = torch.arange(count)[:, None, None, None], torch.arange(channels)[None, :, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _batch(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The set has made the batch already."""
    return batch


def _opened(loader: DataLoader[Any] | None) -> DataLoader[Any]:
    if loader is None:
        raise DataError("received a data module before setup; expected an opened one; call setup('fit') first")
    return loader
