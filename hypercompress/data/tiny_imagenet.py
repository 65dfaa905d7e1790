"""Tiny ImageNet as it is distributed: ``train/ID/images``, and ``val/images`` with ``val_annotations.txt``."""

import contextlib
import io
from collections.abc import Sequence
from pathlib import Path

from torchvision.datasets.utils import download_and_extract_archive

from hypercompress.data.folder import FileImages
from hypercompress.data.images import ImageSource
from hypercompress.data.places import expanded
from hypercompress.errors import DataError, one_line

URL = "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
MD5 = "90528d7ca1a48142e341f4ef8d21d0de"
HOME = "tiny-imagenet-200"


def tiny_imagenet(root: Path, train: bool) -> tuple[ImageSource, Sequence[str]]:
    """The 100,000 training images of 200 classes, or the 10,000 validation images (the test images have no labels).

    Args:
        root: holds ``tiny-imagenet-200`` or is that folder; the archive is unpacked there, and downloaded before if it
            can be.
        train: which of the two.

    Raises:
        DataError: neither folder nor archive, and no download; a list of images that is empty or damaged.
    """
    root = expanded(root)
    home = root if (root / "wnids.txt").is_file() else root / HOME
    if not _complete(home):
        _fetch(root, home)
    classes = sorted((home / "wnids.txt").read_text(encoding="utf-8").split())
    label = {name: index for index, name in enumerate(classes)}
    if train:
        pairs = [
            (path, label[name]) for name in classes for path in sorted((home / "train" / name / "images").glob("*"))
        ]
    else:
        table = (home / "val" / "val_annotations.txt").read_text(encoding="utf-8")
        rows = [line.split("\t") for line in table.splitlines() if line]
        pairs = [(home / "val" / "images" / row[0], label[row[1]]) for row in rows if row[1:2] and row[1] in label]
        pairs = pairs if len(pairs) == len(rows) else []  # a line that names no class: the table is damaged
    if not pairs:
        raise DataError(
            f"received {home}, whose list of images is empty or damaged; expected Tiny ImageNet as distributed; "
            "unpack it again"
        )
    return FileImages([path for path, _ in pairs], [index for _, index in pairs]), classes


def _complete(home: Path) -> bool:
    return all((home / name).exists() for name in ("wnids.txt", "train", "val/val_annotations.txt"))


def _fetch(root: Path, home: Path) -> None:
    """Unpack the archive under ``root``, which is downloaded unless it lies there with the right sum."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # standard output belongs to --json
            download_and_extract_archive(URL, root, md5=MD5)
    except Exception as error:
        raise DataError(
            f"received data root {root} without Tiny ImageNet, which cannot be downloaded ({one_line(error)}); "
            f"expected {home} with wnids.txt, train and val/val_annotations.txt, or {root / (HOME + '.zip')}; unpack "
            "or put it there"
        ) from error
    if not _complete(home):
        raise DataError(
            f"received an archive without all of {home}; expected wnids.txt, train and val/val_annotations.txt in it; "
            f"replace {root / (HOME + '.zip')}"
        )
