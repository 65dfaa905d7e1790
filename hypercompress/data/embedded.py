"""The packaged images: 4,096 training and 2,048 test images of Fashion-MNIST, 28 x 28, grey, ten classes.

A seeded, class-balanced draw (benchmarks/make_fashion_mnist_mini.py), so that examples and tests need no download.
Source: Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747; MIT licence in ``fashion_mnist_mini.LICENSE``.
"""

from importlib.resources import as_file, files

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


class ArrayImages:
    """Grey images in memory, as a source for `ImageData`.

    Args:
        images: uint8 [n, h, w].
        labels: integers [n].
    """

    def __init__(self, images: NDArray[np.uint8], labels: NDArray[np.integer]) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index]), int(self.labels[index])


def fashion_mnist_mini(train: bool) -> ArrayImages:
    """The 4,096 training images or the 2,048 test images."""
    split = "train" if train else "test"
    with as_file(files(__package__) / "fashion_mnist_mini.npz") as path, np.load(path, allow_pickle=False) as arrays:
        return ArrayImages(arrays[f"{split}_images"], arrays[f"{split}_labels"])
