"""Noise that stands in for calibration images where there are none.

A student that is calibrated on 1/f noise, to which the model's BatchNorms are renormalised (`renormalization.py`), is
far nearer than one of the weights alone (LOG.md, 2026-11-28). So that is what ``auto`` does without data.
"""

from typing import Any

import torch
from torch import Tensor, nn

from hypercompress.architecture import own_input_size
from hypercompress.inversion import synthesize, usual_images

BATCH = 32  # images, as of `generate`


def stand_in(model: nn.Module, example: Any = None, *, seed: int = 0) -> list[Tensor] | None:
    """Batches [b, c, h, w] of 1/f noise; ``None`` for a model that does not read images, or does not say which.

    Args:
        model: not modified.
        example: a batch that it takes; ``None``: its own input size counts.
        seed: of the noise.
    """
    size = own_input_size(model) if example is None else _image_size(example)
    if size is None:
        return None
    return list(torch.cat(synthesize(model, size, usual_images(size), steps=0, seed=seed)).split(BATCH))


def _image_size(batch: Any) -> tuple[int, ...] | None:
    """Channels, height and width of the images of a batch; ``None``: it is something else."""
    images = isinstance(batch, Tensor) and batch.is_floating_point() and batch.ndim == 4
    return tuple(batch.shape[1:]) if images else None
