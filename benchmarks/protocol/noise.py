"""Images that are no images: what stands in for data where there is none."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Noise = Literal["gauss", "pink"]
SHARED = 0.9  # of the variance of 1/f noise, the part that all colours share, as they do in photographs


def noise(kind: Noise, count: int, size: tuple[int, int, int], seed: int) -> Float[Tensor, "n c h w"]:
    """Normalised inputs: mean 0 and variance 1 over the set, as preprocessed images have them.

    Args:
        kind: ``gauss``: white. ``pink``: amplitudes fall as 1 / frequency, as in natural images (Field 1987).
        size: channels, height, width.
    """
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(count, *size, generator=generator)
    if kind == "gauss":
        return white
    c, h, w = size
    if c > 1:
        common = torch.randn(count, 1, h, w, generator=generator)
        white = SHARED**0.5 * common + (1 - SHARED) ** 0.5 * white
    frequency = (torch.fft.fftfreq(h)[:, None] ** 2 + torch.fft.rfftfreq(w)[None] ** 2).sqrt()
    frequency[0, 0] = 1 / max(h, w)  # the mean of an image varies like its slowest wave
    pink: Tensor = torch.fft.irfft2(torch.fft.rfft2(white) / frequency, s=(h, w))
    return (pink - pink.mean()) / pink.std()
