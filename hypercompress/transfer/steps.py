"""How far to go along ordinary steps: all of the way on a far task, half of it on a near one.

On a task that the backbone's features fit already, steps on a few images lose what the closed form has; the weights
half way between those before the steps and those after them do not (Wortsman et al. 2022, WiSE-FT, section 3; Kumar et
al. 2022 on what the steps do to the features). On a far task the end is better. Which it is, `nearness` tells (LOG.md,
2026-11-28 and 2026-11-29).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from hypercompress.transfer.nearness import Nearness

HALF = 0.5
MANY = 32  # images of a class: with so many the end still loses on a near task, with 100 it no longer does


def share_of(task: Nearness, images: int, classes: int) -> float:
    """How far the steps are followed: half of the way on a near task, unless there are many images, else all of it.

    Args:
        images, classes: of the support set.
    """
    return HALF if task is Nearness.NEAR and images <= MANY * classes else 1.0


@torch.no_grad()
def go_back(model: nn.Module, before: Mapping[str, Tensor], share: float) -> None:
    """Put the parameters of ``before`` at a share of the way from there to where the model has them, in place."""
    for name, value in before.items():
        parameter = model.get_parameter(name)
        parameter.copy_(torch.lerp(value, parameter, share))
