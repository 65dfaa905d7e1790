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

import numpy as np
from torchvision import datasets

from hypercompress.data.embedded import FASHION_CLASSES, ArrayImages, fashion_mnist_mini
from hypercompress.data.folder import FileImages, open_folder
from hypercompress.data.images import ImageData, ImageSource
from hypercompress.data.preprocess import Preprocess
from hypercompress.errors import DataError

DEFAULT_ROOT = Path("~/.cache/hypercompress")
EXTRA = "hypercompress[train]"
DIGITS_TRAIN = 1437  # of 1,797: four fifths


def open_data(text: str, preprocess: Preprocess, *, train: bool, augment: bool = False) -> ImageData:
    """Open an image folder or a registered data set.

    Args:
        text: path of an image folder (see `open_folder`), or ``name[:root]``. A registered name wins over a folder of
            that name; write ``./name`` for the folder.
        preprocess: how images become inputs.
        train: the training images, else the held-out ones.
        augment: see `Preprocess.transform`.

    Raises:
        DataError: neither a folder nor a known name; files that are missing or corrupt; a package that is missing.
    """
    name, colon, root = text.partition(":")
    if name not in REGISTRY:
        if Path(text).expanduser().is_dir():
            return open_folder(Path(text).expanduser(), preprocess, train=train, augment=augment)
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
        root = root.expanduser()
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
                raise DataError(_needs("scipy")) from error
            reason = " ".join(str(error).split())[:150]
            raise DataError(
                f"received data root {root}, where the data set is missing or corrupt and cannot be downloaded "
                f"({reason}); expected {self.files}; put it there"
            ) from error
        return data, list(data.classes)


def _digits(root: Path, train: bool) -> tuple[ImageSource, Sequence[str]]:
    """scikit-learn's 1,797 handwritten digits, 8 x 8; a fixed random fifth is held out."""
    _no_root("digits", root)
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(_needs("scikit-learn")) from error
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    chosen = order[:DIGITS_TRAIN] if train else order[DIGITS_TRAIN:]
    images = np.round(digits.images[chosen] * (255 / 16)).astype(np.uint8)
    return ArrayImages(images, digits.target[chosen]), [str(digit) for digit in range(10)]


def _mini(root: Path, train: bool) -> tuple[ImageSource, Sequence[str]]:
    _no_root("fashion_mnist_mini", root)
    return fashion_mnist_mini(train), FASHION_CLASSES


def _tiny_imagenet(root: Path, train: bool) -> tuple[ImageSource, Sequence[str]]:
    """Tiny ImageNet as it is distributed: ``train/ID/images``, and ``val/images`` with ``val_annotations.txt``."""
    root = root.expanduser()
    home = root if (root / "wnids.txt").is_file() else root / "tiny-imagenet-200"
    table = home / "val" / "val_annotations.txt"
    if not (home / "wnids.txt").is_file() or not table.is_file() or not (home / "train").is_dir():
        raise DataError(
            f"received data root {root} without Tiny ImageNet; expected {home} with wnids.txt, train and "
            "val/val_annotations.txt; unpack tiny-imagenet-200.zip there"
        )
    classes = sorted((home / "wnids.txt").read_text(encoding="utf-8").split())
    label = {name: index for index, name in enumerate(classes)}
    if train:
        pairs = [
            (path, label[name]) for name in classes for path in sorted((home / "train" / name / "images").glob("*"))
        ]
    else:
        rows = [line.split("\t") for line in table.read_text(encoding="utf-8").splitlines() if line]
        pairs = [(home / "val" / "images" / row[0], label[row[1]]) for row in rows if row[1:2] and row[1] in label]
        pairs = pairs if len(pairs) == len(rows) else []  # a line that names no class: the table is damaged
    if not pairs:
        raise DataError(
            f"received {home}, whose list of images is empty or damaged; expected Tiny ImageNet as distributed; "
            "unpack it again"
        )
    return FileImages([path for path, _ in pairs], [index for _, index in pairs]), classes


def _no_root(name: str, root: Path) -> None:
    if root != DEFAULT_ROOT:
        raise DataError(
            f"received {name}:{root}; expected {name} alone, which needs no files; drop the part after {name}"
        )


def _needs(package: str) -> str:
    return f"received a data set that {package} reads; expected it to be installed; run pip install '{EXTRA}'"


_SPLIT = ({"split": "train"}, {"split": "test"})
_TRAIN = ({"train": True}, {"train": False})
REGISTRY: dict[str, Callable[[Path, bool], tuple[ImageSource, Sequence[str]]]] = {
    "fashion_mnist_mini": _mini,
    "digits": _digits,
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
    "tiny_imagenet": _tiny_imagenet,
}
