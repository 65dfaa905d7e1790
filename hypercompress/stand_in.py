"""Noise that stands in for calibration images where there are none.

A model with BatchNorms can be renormalised to 1/f noise (`renormalization.py`), and a student that is calibrated on it
so is far nearer than one of the weights alone (LOG.md, 2026-11-28). So that is what ``auto`` does without data.
"""

from typing import Any

import torch
from torch import Tensor, nn

from hypercompress.architecture import own_input_size
from hypercompress.inversion import synthesize, usual_images
from hypercompress.norms import remembering_norms

BATCH = 32  # images, as of `generate`


def stand_in(model: nn.Module, example: Any = None, *, seed: int = 0) -> list[Tensor] | None:
    """Batches [b, c, h, w] of 1/f noise; ``None``: the model has no BatchNorm with moments, or does not read images.

    Args:
        model: not modified.
        example: a batch that it takes; ``None``: its own input size counts.
        seed: of the noise.
    """
    size = _image_size(model, example)
    if size is None or not remembering_norms(model):
        return None
    count = usual_images(size)
    return list(torch.cat(synthesize(model, size, count, steps=0, seed=seed)).split(BATCH))


def _image_size(model: nn.Module, example: Any) -> tuple[int, int, int] | None:
    """Channels, height and width of an image that the model reads."""
    size = own_input_size(model) if example is None else example.shape[1:] if _images(example) else None
    if size is None or len(size) != 3:
        return None
    channels, height, width = size
    return int(channels), int(height), int(width)


def _images(example: Any) -> bool:
    return isinstance(example, Tensor) and example.is_floating_point()
