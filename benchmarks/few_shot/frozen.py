"""The heads on frozen features that need no step: nearest class mean, ridge regression, and ridge regression on pixels.

Shape letters: ``n`` support images; ``m`` query images; ``d`` features.
"""

import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from hypercompress.transfer import fit_ridge

FROZEN = ("ncm", "ridge", "pixels")
SIDE = 8  # pixels of a side that images are pooled to for the last of them


def answer(
    method: str,
    support: Float[Tensor, "n d"],
    labels: Int[Tensor, " n"],
    query: Float[Tensor, "m d"],
    classes: int,
) -> Float[Tensor, "m classes"]:
    """Logits of the query images by one of `FROZEN`."""
    if method in ("ridge", "pixels"):
        return fit_ridge(support, labels, classes).logits(query)
    return nearest_class_mean(support, labels, query, classes)


def pixels(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
    """What a head reads that needs no network."""
    return F.adaptive_avg_pool2d(images, SIDE).flatten(1)


def nearest_class_mean(
    support: Float[Tensor, "n d"], labels: Int[Tensor, " n"], query: Float[Tensor, "m d"], classes: int
) -> Float[Tensor, "m classes"]:
    """Minus the squared distance to each class's mean feature (Snell et al. 2017, arXiv 1703.05175, equation 2)."""
    one_hot = F.one_hot(labels, classes).to(support)
    means = one_hot.T @ support / one_hot.sum(0)[:, None]
    return -(query[:, None] - means[None]).square().sum(2)
