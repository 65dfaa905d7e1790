"""Images that are no images: what stands in for data where there is none."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hypercompress.synthetic.inversion import fading_noise, synthesize

Kind = Literal["gauss", "pink", "synthetic"]


def images_of(
    kind: Kind, model: nn.Module, count: int, size: tuple[int, int, int], seed: int
) -> Float[Tensor, "n c h w"]:
    """Inputs as a model without data can have them.

    Args:
        kind: ``gauss``: white noise. ``pink``: amplitudes fall as 1 / frequency, as in natural images (Field 1987).
            ``synthetic``: optimised to have the moments that the model's norms remember.
        count: how many there would be of photographs.
        size: channels, height, width.
    """
    if kind == "synthetic":
        return torch.cat(synthesize(model, size, count, seed=seed))
    generator = torch.Generator().manual_seed(seed)
    if kind == "gauss":
        return fading_noise(count, size, generator, exponent=0.0, shared=0.0)
    return fading_noise(count, size, generator)
