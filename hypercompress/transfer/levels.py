"""Which levels a head reads, and how much each of them weighs.

A linear head on the maps of all stages tells digits apart by a network of clothes as well as fifty steps on all weights
do, in one pass; on tasks near to what the network was trained on it is worse than one on the last features. `nearness`
and leaving one out tell which it is (LOG.md, 2026-11-29; Evci et al. 2022, Head2Toe, arXiv 2201.03529).

Shape letters: ``n`` images; ``m`` images and their views; ``d`` features.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hypercompress.architecture import Levels
from hypercompress.running.calling import evaluating, out_of_memory
from hypercompress.transfer.backbone import Backbone
from hypercompress.transfer.nearness import Nearness
from hypercompress.transfer.ridge import Ridge, fit_ridge, mean_square

SIDES = (4, 2, 1)  # cells of a side that maps are pooled to, the most that there is room for
MOST_MAPS = 6  # of so many at most, evenly spaced
MOST_SHARE = 0.25  # of the model's parameters, for a head
MOST_NUMBERS = 2**26  # features of all images and views, of which some copies are made in double precision
MARGIN = 0.1  # of the last features' loss, where an image is left out, that maps must save on tasks not known to be far
RATIO = 0.7  # of the weight of a level to that of the one before it


class Weighing(StrEnum):
    """How much each level weighs in what a head takes for alike."""

    LAST = "last"  # the last features alone
    EVEN = "even"  # half of all for these, the rest in equal parts
    EARLY = "early"  # each less than the one before it, by `RATIO`; the last features least


@dataclass(frozen=True)
class Weighed:
    """A head, and what it reads.

    Args:
        weighing: of the levels.
        head: on the features of all levels, or on the last ones alone.
        why: in words.
        losses: left out, by weighing, of those that were tried; ``None`` with one image a class.
    """

    weighing: Weighing
    head: Ridge
    why: str
    losses: dict[Weighing, float | None]


def find_levels(
    backbone: Backbone, image: Float[Tensor, "1 c h w"], last: Float[Tensor, "1 d"], images: int, classes: int
) -> tuple[Levels | None, str]:
    """The levels of a timm model, and if there are none the reason in words. The model runs once. Lack of memory is
    raised as it is.

    Args:
        last: the features of the image.
        images: and views of them, whose features are in memory at once.
        classes: of the head.
    """
    model: Any = backbone.model
    if not bool(last.isfinite().all()):
        return None, "its features are not finite"
    if not hasattr(model, "forward_intermediates"):
        return None, f"{type(model).__name__} has no forward_intermediates"
    with evaluating(backbone), torch.no_grad():
        try:
            final, maps = model.forward_intermediates(image, output_fmt="NCHW")
            again = model.forward_head(final, pre_logits=True)
        except Exception as error:  # whatever else a model raises there, its last features are at hand
            if out_of_memory(error):
                raise
            return None, f"its forward_intermediates raised {type(error).__name__}"
    if again.shape != last.shape or not torch.allclose(again, last, rtol=1e-3, atol=1e-4 * float(last.abs().max())):
        return None, "its forward_intermediates does not end in what the classifier reads"
    chosen = [index for index in _spread(len(maps), MOST_MAPS) if maps[index].ndim == 4]
    if not chosen:
        return None, "it has no maps"
    parameters = sum(p.numel() for p in model.parameters())
    for side in SIDES:
        channels = tuple(int(maps[index].shape[1]) for index in chosen)
        sides = tuple(min(side, *maps[index].shape[-2:]) for index in chosen)
        levels = Levels(last.shape[1], tuple(chosen), channels, sides)
        if levels.width * classes <= MOST_SHARE * parameters and levels.width * images <= MOST_NUMBERS:
            return levels, ""
    return None, "a head on them would be too large"


def weigh(
    features: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    classes: int,
    levels: Levels | None,
    last: Ridge,
    task: Nearness,
) -> Weighed:
    """The weighing whose head costs least where an image is left out: on far tasks by anything, else by `MARGIN`.

    With one image a class nothing can be left out: levels are read on far tasks.

    Args:
        features: of all levels.
        last: the head on the last features.
    """
    found = Weighed(Weighing.LAST, last, "leave-one-out loss", {Weighing.LAST: last.loo_loss})
    far = task is Nearness.FAR
    if levels is None:
        return found
    if last.loo_loss is None:
        found = replace(found, why="one image a class: by how alike MODEL answers images of different classes")
        if not far:
            return found
        head = fit_ridge(features, labels, classes, factors=factors(features, levels, Weighing.EARLY))
        return replace(found, weighing=Weighing.EARLY, head=head)
    best = last.loo_loss * (1 - (0 if far else MARGIN))
    for weighing in (Weighing.EVEN, Weighing.EARLY):
        head = fit_ridge(features, labels, classes, factors=factors(features, levels, weighing))
        assert head.loo_loss is not None  # as there is one on the last features
        found = replace(found, losses=found.losses | {weighing: head.loo_loss})
        if head.loo_loss < best:
            best, found = head.loo_loss, replace(found, weighing=weighing, head=head)
    lower = any(loss is not None and loss < last.loo_loss for loss in found.losses.values())
    if found.weighing is Weighing.LAST and lower:
        found = replace(found, why=f"leave-one-out loss, {MARGIN:.0%} less of which is asked where a task is not far")
    return found


def factors(features: Float[Tensor, "m d"], levels: Levels | None, weighing: Weighing) -> Float[Tensor, " d"] | None:
    """What to multiply features by, so that each level has its weight in the squared distance of two images."""
    if levels is None or weighing is Weighing.LAST:
        return None
    parts = features.detach().double().split([levels.last, *levels.widths], dim=1)
    weights = _shares(len(parts) - 1, weighing)
    scales = [
        math.sqrt(weight / float(mean_square(part - part.mean(0)))) * torch.ones_like(part[0])
        for part, weight in zip(parts, weights, strict=True)
    ]
    return torch.cat(scales)


def _shares(maps: int, weighing: Weighing) -> Sequence[float]:
    """Of the last features, and of each map from the first on; together 1. Of `Weighing.LAST` there are none."""
    if weighing is Weighing.EVEN:
        return [0.5, *[0.5 / maps] * maps]
    weights = [RATIO**maps, *(RATIO**place for place in range(maps))]
    return [weight / math.fsum(weights) for weight in weights]


def _spread(count: int, most: int) -> list[int]:
    """At most so many of ``range(count)``, the last among them."""
    if count <= most:
        return list(range(count))
    return [(place + 1) * count // most - 1 for place in range(most)]
