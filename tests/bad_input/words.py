"""A small network, images, and the words that compress it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

ARGS = '{"num_classes": 10, "in_chans": 1}'
SVD = ("--params", "0.5", "--generator", "svd")

Refused = Callable[..., str]


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=10, in_chans=1)


def generate(out: Path, checkpoint: Path, *words: object) -> tuple[object, ...]:
    return ("generate", "test_resnet", out, "--checkpoint", checkpoint, "--model-args", ARGS, *words)


def gradient(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.fromarray(np.full((16, 16), 20 * index, dtype=np.uint8)).save(folder / f"{index}.png")
