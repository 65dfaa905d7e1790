"""Images of a step pasted into each other: a teacher answers any image, so of few images many can be made.

CutMix (Yun et al. 2019, sec. 3.1) without labels: the teacher is asked about the very image that the student sees
("function matching", Beyer et al. 2022, sec. 3, there with mixup). The moments of such images are not those of whole
ones, so BatchNorms keep theirs (LOG.md, 2026-11-30).
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_modules.optimization import SettingError


def mixed(images: Float[Tensor, "b ..."], random: torch.Generator) -> Float[Tensor, "b c h w"]:
    """Each image with a box of another one in the same place, of any share of its area, all equally likely.

    Args:
        random: on the CPU; one image is never the other of two.

    Raises:
        SettingError: no images [b, c, h, w].
    """
    if images.ndim != 4:
        raise SettingError(
            f"received a batch of shape {list(images.shape)} to be mixed; expected images [b, c, h, w]; leave "
            "--model.mixing out"
        )
    count, height, width = len(images), *images.shape[-2:]
    others = images.roll(1, 0)  # batches come in random order
    side = torch.rand(count, generator=random).sqrt()  # of the box, as a share of the image's
    rows, columns = (_span(side, length, random) for length in (height, width))
    box = (rows[:, None, :, None] & columns[:, None, None, :]).to(images.device)
    return torch.where(box, others, images)


def _span(side: Float[Tensor, " b"], length: int, random: torch.Generator) -> Bool[Tensor, "b length"]:
    """Which of the places of an axis lie in a span of so much of it, all of it in the image."""
    size = (side * length).round()[:, None]
    start = (torch.rand(len(side), 1, generator=random) * (length - size + 1)).floor()
    places = torch.arange(length)
    return (places >= start) & (places < start + size)
