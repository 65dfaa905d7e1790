"""Noise that stands in for calibration images where there are none.

A student that is calibrated on 1/f noise, to which the model's BatchNorms are renormalised (`renormalization.py`), is
mostly far nearer than one of the weights alone (LOG.md, 2026-11-28). So that is what ``auto`` does without data.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from hypercompress.architecture import own_input_size
from hypercompress.synthetic.inversion import fading_noise, usual_images

BATCH = 32  # images, as of `generate`
LARGEST_BATCH = 2**23  # elements: 32 MiB


def stand_in(model: nn.Module, example: Any = None, *, seed: int = 0) -> list[Tensor] | None:
    """Batches [b, c, h, w] of 1/f noise; ``None`` for a model that does not read images, or does not say which.

    Args:
        model: not modified.
        example: a batch that it takes, of a tuple the first item; ``None``: its own input size counts.
        seed: of the noise.
    """
    size = own_input_size(model) if example is None else _image_size(example)
    if size is None:
        return None
    noise = fading_noise(usual_images(size), size, torch.Generator().manual_seed(seed))
    return list(noise.split(min(BATCH, max(2, LARGEST_BATCH // math.prod(size)))))


def _image_size(batch: Any) -> tuple[int, ...] | None:
    """Channels, height and width of the images of a batch; ``None``: it is something else."""
    images = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if isinstance(images, Tensor) and images.is_floating_point() and images.ndim == len("bchw"):
        return tuple(images.shape[1:])
    return None
