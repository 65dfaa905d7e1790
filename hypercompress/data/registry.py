"""Data sets by name: ``name`` or ``name:ROOT``. Each is one entry of `REGISTRY`.

Files are looked for under ROOT (default ``~/.cache/hypercompress``) in torchvision's layout; torchvision downloads
what is missing if it can.
"""

import contextlib
import difflib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchvision import datasets

from hypercompress.data.embedded import FASHION_CLASSES, fashion_mnist_mini
from hypercompress.data.folder import open_folder
from hypercompress.data.glyphs import glyphs
from hypercompress.data.images import ImageData, ImageSource
from hypercompress.data.packaged import digits, mnist_5k, needs, solar_cells
from hypercompress.data.places import expanded
from hypercompress.data.preprocess import Preprocess
from hypercompress.data.tiny_imagenet import tiny_imagenet
from hypercompress.errors import DataError, one_line

DEFAULT_ROOT = Path("~/.cache/hypercompress")


def open_data(
    text: str | Path, preprocess: Preprocess, *, train: bool, augment: bool = False, test: bool = False
) -> ImageData:
    """Open an image folder or a registered data set.

    Args:
        text: path of an image folder (see `open_folder`), or ``name[:root]``. A registered name wins over a folder of
            that name; write ``./name`` for the folder, or pass a `Path`, which is a folder's always.
        preprocess: how images become inputs.
        train: the training images, else the held-out ones.
        augment: see `Preprocess.transform`.
        test: see `open_folder`; of a registered data set the held-out images are one set.

    Raises:
        DataError: neither a folder nor a known name; files that are missing or corrupt; a package that is missing.
    """
    folder, text = isinstance(text, Path), str(text)
    name, colon, root = text.partition(":")
    if folder or name not in REGISTRY:
        if text and expanded(text).is_dir():
            return open_folder(expanded(text), preprocess, train=train, augment=augment, test=test)
        near = difflib.get_close_matches(name, REGISTRY, n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "check the path"
        raise DataError(
            f"received data {text!r}; expected an image folder, or NAME[:ROOT] with one of {', '.join(REGISTRY)}; "
            f"{hint}"
        )
    if colon and not root:
        raise DataError(f"received data {text!r}; expected a folder after the colon; pass {name} or {name}:ROOT")
    source, classes = REGISTRY[name](Path(root) if root else DEFAULT_ROOT, train)
    return ImageData(source, preprocess.transform(augment), classes=classes)


def registered_names() -> tuple[str, ...]:
    """The names that `open_data` knows."""
    return tuple(REGISTRY)


@dataclass(frozen=True)
class _Torchvision:
    """A data set that torchvision reads.

    Args:
        dataset: torchvision's class.
        splits: its arguments for the training images and for the held-out ones.
        files: what must lie under ROOT, for the message.
    """

    dataset: Callable[..., Any]
    splits: tuple[dict[str, Any], dict[str, Any]]
    files: str

    def __call__(self, root: Path, train: bool) -> tuple[ImageSource, Sequence[str]]:
        root = expanded(root)
        arguments = self.splits[0 if train else 1]
        try:
            try:
                data = self.dataset(root, download=False, **arguments)
            except RuntimeError as missing:
                if "scipy" in str(missing).lower():
                    raise
                with contextlib.redirect_stdout(io.StringIO()):  # standard output belongs to --json
                    data = self.dataset(root, download=True, **arguments)
        except Exception as error:
            if isinstance(error, ImportError) or "scipy" in str(error).lower():
                raise DataError(needs("scipy", "hypercompress[train]")) from error
            raise DataError(
                f"received data root {root}, where the data set is missing or corrupt and cannot be downloaded "
                f"({one_line(error)}); expected {self.files}; put it there"
            ) from error
        return data, list(data.classes)


@dataclass(frozen=True)
class _WithoutFiles:
    """A data set that a package brings.

    Args:
        name: its own.
        read: from "training images?" to the images and the names of the classes.
    """

    name: str
    read: Callable[[bool], tuple[ImageSource, Sequence[str]]]

    def __call__(self, root: Path, train: bool) -> tuple[ImageSource, Sequence[str]]:
        if root != DEFAULT_ROOT:
            raise DataError(
                f"received {self.name}:{root}; expected {self.name} alone, which needs no files; drop the part after "
                f"{self.name}"
            )
        return self.read(train)


def _mini(train: bool) -> tuple[ImageSource, Sequence[str]]:
    return fashion_mnist_mini(train), FASHION_CLASSES


_SPLIT = ({"split": "train"}, {"split": "test"})
_TRAIN = ({"train": True}, {"train": False})
REGISTRY: dict[str, Callable[[Path, bool], tuple[ImageSource, Sequence[str]]]] = {
    "fashion_mnist_mini": _WithoutFiles("fashion_mnist_mini", _mini),
    "digits": _WithoutFiles("digits", digits),
    "glyphs": _WithoutFiles("glyphs", glyphs),
    "mnist_5k": _WithoutFiles("mnist_5k", mnist_5k),
    "solar_cells": _WithoutFiles("solar_cells", solar_cells),
    "fashion_mnist": _Torchvision(datasets.FashionMNIST, _TRAIN, "FashionMNIST/raw/*-ubyte in it (four files)"),
    "cifar10": _Torchvision(datasets.CIFAR10, _TRAIN, "cifar-10-python.tar.gz in it"),
    "cifar100": _Torchvision(datasets.CIFAR100, _TRAIN, "cifar-100-python.tar.gz in it"),
    "flowers102": _Torchvision(
        datasets.Flowers102,
        _SPLIT,
        "flowers-102/102flowers.tgz, flowers-102/imagelabels.mat and flowers-102/setid.mat in it",
    ),
    "stanford_cars": _Torchvision(
        datasets.StanfordCars,
        _SPLIT,
        "stanford_cars/cars_train, stanford_cars/cars_test, stanford_cars/devkit and "
        "stanford_cars/cars_test_annos_withlabels.mat in it",
    ),
    "tiny_imagenet": tiny_imagenet,
}
