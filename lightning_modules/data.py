"""One data module for every system: an image folder or a registered data set, prepared as the model wants it.

Shape letters: ``b`` images in a batch; ``c h w`` channels, height and width of one image.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hypercompress.alone import drawing
from hypercompress.data import Preprocess, expanded, folder_read, mismatch, open_data, registered_names, unlike_timm
from hypercompress.errors import DataError
from hypercompress.models import load_model
from lightning_modules.images import Augment, CachedImages, Images, open_part
from lightning_modules.loading import Order, ResumableLoader, Share, batch_, ignore_signals


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
        """The preparation; ``network`` is the model in training, if there is one. ``like`` is built for it: the random
        states stay as they were.

        Raises:
            DataError: something is missing, or does not fit the model's channels.
        """
        if self.like is not None:
            with drawing():
                network, _ = load_model(self.like, pretrained=False)
        return Preprocess.of(network or nn.Identity(), self.input_size, self.mean, self.std)


class ImageDataModule(LightningDataModule):
    """Batches ``(images [b, c, h, w], labels [b])``; the labels of an unlabelled set are -1.

    A set of up to 1 GiB of tensors (what ``limit`` leaves of it) is prepared once and kept in memory: on two cores
    that is thirty times faster than preparing 28 x 28 images one by one in each epoch. The batches are the same.

    Args:
        data: an image folder or ``name[:root]``; see `hypercompress.data.open_data`.
        val_data: the same for validation; without it the held-out part of ``data`` (of a folder without parts: all). A
            test is on the test images of either, where a folder has them beside those of the validation.
        inputs: how the images are prepared; by default as the model in training says.
        batch_size: images in a batch, on each device.
        limit: train on a random subset of so many images.
        val_limit: validate on a random subset of so many images.
        augment: ``flip`` mirrors half of the images, ``shift`` also moves each by up to 1/14 of its side, ``crop`` is
            timm's random crop, flip and change of colour (drawn image by image, so nothing is kept in memory).
        workers: processes that prepare the images of sets that are too large for memory.

    Raises:
        DataError: batches without an image, or less than no process; at ``setup``: unknown or unreadable data, or a
            preparation that does not fit the model.
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
        if batch_size < 1 or workers < 0:
            raise DataError(
                f"received batch_size {batch_size}, workers {workers}; expected 1 image or more in a batch, and 0 "
                "workers or more; change them"
            )
        self.data, self.val_data, self.inputs = data, val_data, inputs or Inputs()
        self.batch_size, self.limit, self.val_limit = batch_size, limit, val_limit
        self.augment, self.workers = augment, workers
        self._parts: dict[str, Images] = {}  # train, val, test: as the model numbers the classes
        self._opened: dict[str, Images] = {}  # as their folders do
        self._like: tuple[Inputs, Preprocess] | None = None  # of the model that they name, which is built once
        self._loader: ResumableLoader | None = None
        self._ahead: dict[str, Any] | None = None  # what a checkpoint says of a loader that is not made yet

    def setup(self, stage: str) -> None:
        """Open what the stage needs, once."""
        preprocess = self.preprocess()
        if not self._opened:
            channels, height, width = preprocess.input_size
            kind = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
            moments = f"mean {list(preprocess.mean)}, std {list(preprocess.std)}"
            rank_zero_info(f"images are prepared as {kind}, {height} x {width} pixels, {moments}")
        if stage == "fit":
            self._open("train", self.data, preprocess, self.augment, self.limit)
        held_out = self.val_data or self.data
        self._open("test" if stage == "test" else "val", held_out, preprocess, "none", self.val_limit)

    def _open(self, part: str, text: str, preprocess: Preprocess, augment: Augment, limit: int | None) -> None:
        if part in self._opened:
            return
        images = open_part(text, preprocess, part == "train", augment, limit, test=part == "test")
        self._opened[part] = self._parts[part] = images
        if part == "test":
            folder = text.partition(":")[0] not in registered_names()
            where = folder_read(expanded(text), train=False, test=True) if folder else text
            rank_zero_info(f"tested on {len(images)} images of {where}")

    def number_by(self, names: Sequence[str], outputs: int, followed: bool, fewer: bool = False) -> None:
        """Have the labels count the classes as the model does: a system knows that in its ``setup``.

        By the names of its outputs, else as the training images do. Labels that cannot be read so are left out, with a
        warning where accuracy would have been measured on them.

        Args:
            names: of the outputs, as in a student's report; unknown if they are not as many.
            outputs: of the model.
            followed: whether the steps learn from the labels.
            fewer: whether a model whose classes have no names may have more of them than the images, as it has learnt
                none yet: then they are its first.

        Raises:
            DataError: they do, and the images have classes that the model has not, or it is not known which.
        """
        named = len(names) == outputs
        order = tuple(names) if named else self.trained_classes()
        if not named and (otherwise := unlike_timm(order)):
            rank_zero_warn(f"class folders in alphabetical order are taken as the model's classes: {otherwise}")
        for part, images in self._opened.items():
            self._parts[part] = self._numbered(images, order, outputs, followed, fewer)
            if part != "train" and images.classes and not self._parts[part].classes:
                rank_zero_warn(f"top-1 is not measured: {mismatch(images.classes, order, outputs)}")
            elif part != "train" and not images.classes:
                rank_zero_info("top-1 is not measured: these images have no labels")

    @staticmethod
    def _numbered(images: Images, order: Sequence[str], outputs: int, followed: bool, fewer: bool) -> Images:
        if not images.classes:
            return images
        why = mismatch(images.classes, order, outputs, fewer=fewer)
        if why is not None and followed:
            known = len(order) >= outputs or fewer
            raise DataError(
                f"received images whose labels are not the model's: {why}; expected "
                f"{'classes that it has' if known else 'a class for each output, as the model does not name them'}; "
                "give the head as many outputs, or move the model to these classes with hypercompress transfer"
            )
        return images.relabelled(() if why else order)

    def trained_classes(self) -> Sequence[str]:
        """Those of the training images, also where a stage does not open them; of unlabelled ones the others'."""
        train, others = self._opened.get("train"), [images for part, images in self._opened.items() if part != "train"]
        if train is None and self.val_data:
            found: Sequence[str] = open_data(self.data, self.preprocess(), train=True).classes
        else:
            found = () if train is None else train.classes
        return found or (others[0].classes if others else ())

    def training_images(self) -> int | None:
        """How many there are, after ``limit``; ``None`` where a stage has not opened them."""
        images = self._opened.get("train")
        return None if images is None else len(images)

    def preprocess(self) -> Preprocess:
        """How the images are prepared."""
        if self.inputs.like is not None:
            if self._like is None or self._like[0] != self.inputs:
                self._like = self.inputs, self.inputs.preprocess()
            return self._like[1]
        system = self.trainer.lightning_module if self.trainer is not None else None
        return self.inputs.preprocess(getattr(system, "network", None))

    def identity(self) -> dict[str, str]:
        """What a run that goes on has to find again: images in the order in which it has them, however they lie there.

        Of a path only the last name counts, and of a file its name, class and size: a set may be moved.
        """
        names = {"data": self.data, "val_data": self.val_data or self.data}
        found = {key: Path(text.partition(":")[0]).absolute().name for key, text in names.items()}
        classes = self.trained_classes()
        told = f"{len(classes)} ({', '.join(classes[:3])})"
        prepared = ", ".join(f"{key} {value}" for key, value in asdict(self.preprocess()).items())
        if train := self._opened.get("train"):
            found["images"] = f"{len(train)} (files {train.digest})" if train.digest else str(len(train))
        found |= {"augment": self.augment, "batch_size": str(self.batch_size), "seed": str(seed_of_run())}
        return {**found, "classes": told, "preparation": f"({prepared})"}

    def train_dataloader(self) -> DataLoader[Any]:
        """This rank's share, shuffled and augmented; the last, smaller batch is dropped."""
        loader = self._shuffled(self.workers)
        loader.most = 1.0 if self.trainer is None else self.trainer.limit_train_batches
        if self._ahead is not None:
            loader.load_state_dict(self._ahead)
            self._ahead = None
        self._loader = loader
        return loader

    def beginning(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of this rank's first epoch, apart from those of the training."""
        yield from self._shuffled(0)

    def _shuffled(self, workers: int) -> ResumableLoader:
        data = _opened(self._parts.get("train"))
        ranks, rank = self._ranks()
        sampler = Order(data, ranks, rank, shuffle=True, seed=seed_of_run(), drop_last=len(data) > ranks)
        whole = len(sampler) > self.batch_size
        return ResumableLoader(data, sampler=sampler, drop_last=whole, **self._options(data, workers))

    def state_dict(self) -> dict[str, Any]:
        """That of the training loader.

        Lightning keeps it, too, but gives it to no loader that is made before it restores its loops: as where the
        length of a schedule follows from a number of epochs.
        """
        return {} if self._loader is None else {"loader": self._loader.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of a fit that goes on, the next training loader does so."""
        if self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._ahead = state_dict.get("loader")

    def val_dataloader(self) -> DataLoader[Any]:
        """This rank's share, in order, not augmented."""
        return self._shared(_opened(self._parts.get("val")))

    def test_dataloader(self) -> DataLoader[Any]:
        """As for validation."""
        return self._shared(_opened(self._parts.get("test", self._parts.get("val"))))

    def held_out(self, limit: int | float = 1.0) -> DataLoader[Any]:
        """Of the batches that one process would validate on (so many, or such a share of them) those of this rank."""
        data, (ranks, rank) = _opened(self._parts.get("val")), self._ranks()
        batches = [part.tolist() for part in torch.arange(len(data)).split(self.batch_size)]
        count = int(limit * len(batches)) if isinstance(limit, float) else limit  # as Lightning has it
        options = {**self._options(data, self.workers), "batch_size": 1}  # torch's word for: as the sampler says
        return DataLoader(data, batch_sampler=batches[:count][rank::ranks], **options)

    def _shared(self, data: Images) -> DataLoader[Any]:
        ranks, rank = self._ranks()
        options = self._options(data, self.workers)
        if ranks > 1:
            sampler = Share(data, ranks, rank)
            options |= {"sampler": sampler, "batch_size": sampler.batch_size(self.batch_size)}
        return DataLoader(data, **options)

    def _ranks(self) -> tuple[int, int]:
        """How many there are, and this one."""
        return (1, 0) if self.trainer is None else (self.trainer.world_size, self.trainer.global_rank)

    def _on_gpu(self) -> bool:
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    def _options(self, data: Images, workers: int) -> dict[str, Any]:
        workers = 0 if isinstance(data, CachedImages) else workers
        return {
            "batch_size": self.batch_size,
            "collate_fn": batch_,
            "num_workers": workers,
            "persistent_workers": workers > 0,
            "pin_memory": self._on_gpu(),  # from there a GPU fetches a batch while it computes
            "worker_init_fn": ignore_signals,
            # Workers are seeded from it, not from the random state of the training, which a resumed run has to meet.
            "generator": torch.Generator().manual_seed(0),
        }


def images_of(system: LightningModule) -> ImageDataModule | None:
    """The images that a system's trainer feeds it, if they come from here."""
    data = None if system._trainer is None else getattr(system.trainer, "datamodule", None)
    return data if isinstance(data, ImageDataModule) else None


def seed_of_run() -> int:
    """That of the run, the same on every rank, as Lightning's own samplers take it."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


def _opened(data: Images | None) -> Images:
    if data is None:
        raise DataError("received a data module before setup; expected an opened one; call setup('fit') first")
    return data
