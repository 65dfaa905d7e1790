"""Words of the command line that many tests share, and images on disk."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from hypercompress.allocation import ParetoPoint

SIZE = ("--input-size", "1", "32", "32", "--mean", "0.286", "--std", "0.353")
DATA = ("--data", "fashion_mnist_mini")
ARGS = '{"num_classes": 10, "in_chans": 1}'
CALIBRATE = (*SIZE, *DATA, "--images", "96")
PRECISIONS = (torch.float16, torch.bfloat16, torch.float64)  # besides float32
Run = Callable[..., tuple[int, str, str]]


def write_images(folder: Path, count: int, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    for index in range(count):
        Image.fromarray(generator.integers(0, 255, (20, 24), dtype=np.uint8)).save(folder / f"{index}.png")


def rows_of(path: Path) -> dict[str, list[ParetoPoint]]:
    rows: dict[str, list[ParetoPoint]] = {"params": [], "macs": []}
    with path.open() as file:
        for row in csv.DictReader(file):
            rows[row["unit"]].append(ParetoPoint(float(row["share"]), float(row["predicted_kl"])))
    return rows
