"""Changed images of the same classes: a set in several guises is several domains for learning to adapt.

As the ImageNet-C corruptions (Hendrycks and Dietterich 2019), but few, and strong enough to move the moments of every
layer, as an image set from elsewhere does.

Shape letters: ``n`` images; ``c h w`` channels, height and width.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from hypercompress.errors import DataError

Images = Float[Tensor, "n c h w"]
COARSE = 4  # pixels that become one
NOISE = 0.3  # deviation, of images in [0, 1]


def in_domain(images: Images, domain: str, generator: torch.Generator) -> Images:
    """Images as they look in a domain.

    Args:
        images: in [0, 1]; so are those returned.
        domain: a name of `DOMAINS`.
        generator: of the noise; others take nothing from it.

    Raises:
        DataError: an unknown domain.
    """
    if domain not in DOMAINS:
        raise DataError(f"received the domain '{domain}'; expected one of {', '.join(DOMAINS)}; choose one")
    return DOMAINS[domain](images, generator).clamp(0, 1)


def _edges(images: Images, _: torch.Generator) -> Images:
    """The length of the Sobel gradient of each channel."""
    kernel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]]).to(images) / 4
    both = torch.stack([kernel, kernel.T])[:, None].repeat(images.shape[1], 1, 1, 1)
    sides = F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), both, groups=images.shape[1])
    length: Tensor = sides.unflatten(1, (-1, 2)).square().sum(2).sqrt()
    return length


def _coarse(images: Images, _: torch.Generator) -> Images:
    """A few large pixels, smoothed."""
    small = F.avg_pool2d(images, COARSE, ceil_mode=True)
    return F.interpolate(small, size=images.shape[-2:], mode="bicubic")


def _noisy(images: Images, generator: torch.Generator) -> Images:
    return images + NOISE * torch.randn(images.shape, generator=generator).to(images)


DOMAINS: dict[str, Callable[[Images, torch.Generator], Images]] = {
    "plain": lambda images, _: images,
    "inverted": lambda images, _: 1 - images,
    "edges": _edges,
    "coarse": _coarse,
    "noisy": _noisy,
    "turned": lambda images, _: images.rot90(1, (2, 3)),
    "binary": lambda images, _: (images > 0.4).to(images),
    "faint": lambda images, _: 0.1 + 0.35 * images,
    "bright": lambda images, _: images.sqrt(),
}
