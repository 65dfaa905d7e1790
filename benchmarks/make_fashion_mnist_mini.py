"""Make the packaged data set: a seeded, class-balanced subset of Fashion-MNIST (MIT licence, Zalando SE).

    python benchmarks/make_fashion_mnist_mini.py ROOT [--out FILE] [--seed 0]

ROOT holds ``FashionMNIST/raw/*-ubyte`` (the layout of ``torchvision.datasets.FashionMNIST(ROOT)``). 4,096 of the
60,000 training images and 2,048 of the 10,000 test images are drawn; every class appears equally often, give or
take one image (neither count divides by ten). One CPU core, about ten seconds; the file is 3 MB at most.
The same seed gives the same images.
"""

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets import FashionMNIST

DEFAULT_OUT = Path(__file__).resolve().parent.parent / "hypercompress" / "data" / "fashion_mnist_mini.npz"
COUNTS = {"train": 4096, "test": 2048}
CLASSES = 10
LIMIT_BYTES = 3_000_000


def balanced(labels: NDArray[np.uint8], count: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices of ``count`` images, shuffled; the first ``count % 10`` classes get one image more."""
    chosen = []
    for label in range(CLASSES):
        share = count // CLASSES + (label < count % CLASSES)
        chosen.append(rng.choice(np.flatnonzero(labels == label), share, replace=False))
    return rng.permutation(np.concatenate(chosen))


def main() -> None:
    """Draw, write, and check the size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", metavar="ROOT", type=Path, help="folder that holds FashionMNIST/raw")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="file to write (default: the packaged one)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw (default: 0)")
    options = parser.parse_args()
    rng = np.random.default_rng(options.seed)
    arrays: dict[str, NDArray[np.uint8]] = {}
    for split, count in COUNTS.items():
        source = FashionMNIST(options.root, train=split == "train")
        labels = source.targets.numpy().astype(np.uint8)
        chosen = balanced(labels, count, rng)
        arrays[f"{split}_images"] = source.data.numpy()[chosen]
        arrays[f"{split}_labels"] = labels[chosen]
    np.savez_compressed(options.out, allow_pickle=False, **arrays)
    size = options.out.stat().st_size
    if size > LIMIT_BYTES:
        raise SystemExit(f"received {size} bytes; expected at most {LIMIT_BYTES}; draw fewer images")
    print(f"{options.out}: {size} bytes")


if __name__ == "__main__":
    main()
