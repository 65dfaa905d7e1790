"""Whether a task is near to what the model was trained on: by how alike its classifier answers different new classes.

A network of clothes answers most digits with the same two or three names, and other clothes with names of their own. On
a near task the features are right already, and whatever a few images say against them costs more than it gives; on a
far one early maps, views and long steps are worth up to 30 points (LOG.md, 2026-11-29).

Shape letters: ``n`` images; ``d`` features.
"""

import math
from enum import StrEnum

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

BAR = 0.2  # of `alike`: above it the task is far
ROWS = 4096  # images that are answered at once


class Nearness(StrEnum):
    """Of a task."""

    NEAR = "near"
    FAR = "far"
    UNKNOWN = "unknown"  # there is no classifier to ask


def nearness_of(answers: float | None) -> Nearness:
    """By how alike they are, see `alike`."""
    if answers is None:
        return Nearness.UNKNOWN
    return Nearness.NEAR if answers <= BAR else Nearness.FAR


def alike(features: Float[Tensor, "n d"], labels: Int[Tensor, " n"], classifier: nn.Module | None) -> float | None:
    """How alike a classifier answers images of different new classes: the mean product of its probabilities for two of
    them, over that of an answer with itself. Near 0 where it tells them apart, near 1 where all are one to it; ``None``
    without a classifier of two classes or more, or where it answers with NaN.

    Args:
        features: that it reads.
        labels: of two classes or more.
    """
    if classifier is None or isinstance(classifier, nn.Identity):  # timm's, of no classes
        return None
    counts, sums, own = torch.bincount(labels), None, 0.0
    for some, named in zip(features.split(ROWS), labels.split(ROWS), strict=True):
        with torch.no_grad():
            logits = classifier(some)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2:
            return None
        answers = logits.double().softmax(1)
        sums = answers.new_zeros(len(counts), answers.shape[1]) if sums is None else sums
        sums.index_add_(0, named, answers)
        own += float(answers.square().sum())
    assert sums is not None  # there are images
    pairs = len(labels) ** 2 - int(counts.square().sum())
    products = float(sums.sum(0).square().sum() - sums.square().sum()) / pairs
    found = products / (own / len(labels))
    return found if math.isfinite(found) else None
