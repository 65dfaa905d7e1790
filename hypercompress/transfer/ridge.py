"""The closed-form head: ridge regression on one-hot targets, its penalty and its temperature by leave-one-out.

Rifkin and Lippert (2007) give the leave-one-out residuals of the whole grid of penalties from one eigendecomposition;
Bertinetto et al. (2019, R2-D2) use ridge regression as a differentiable few-shot head.

Shape letters: ``n`` images; ``v`` sets of them, the images and each of their views; ``m`` rows, n times v, set after
set; ``d`` features; ``k`` eigenvalues, the smaller of m and d; ``l`` penalties.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hypercompress.errors import DataError, NonFiniteError, listed

PENALTIES = tuple(10 ** (power / 4) for power in range(-16, 9))  # times the features' mean squared norm
DEFAULT_PENALTY = 1.0  # where every class has one image, so that nothing can be left out
VIEWED_PENALTY = 0.1  # there, if there are views
FLOOR = 0.3  # of the mean deviation, added to each: of few images some features do not vary
SCALES = (1.0, 100.0)  # of regressed one-hot targets, as logits
DEFAULT_SCALE = 10.0
BISECTIONS = 16
LARGEST = 2**22  # numbers that are worked on at once: penalties times images times classes


@dataclass(frozen=True)
class Ridge:
    """A linear head, ``features @ weight.T + bias``, whose softmax is calibrated.

    Args:
        weight, bias: in float64, the temperature multiplied in.
        penalty: of the squared weights, as a share of the features' mean squared norm about their mean; of even
            features (`evenly`), of what they are multiplied to.
        scale: the temperature's inverse.
        loo_accuracy, loo_loss: of each image under the head fitted to all others, in [0, 1] and in nats (with smoothed
            labels, see `fit_ridge`); ``None`` if every class has one image. Images alone in their class do not count.
    """

    weight: Float[Tensor, "classes d"]
    bias: Float[Tensor, " classes"]
    penalty: float
    scale: float
    loo_accuracy: float | None
    loo_loss: float | None

    def logits(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
        """Class logits, in the features' precision."""
        return F.linear(features, self.weight.to(features), self.bias.to(features))


@dataclass(frozen=True)
class Choice:
    """A penalty and a scale, and what they cost left out."""

    penalty: float
    scale: float
    accuracy: float | None = None
    loss: float | None = None


def fit_ridge(
    features: Float[Tensor, "m d"],
    labels: Int[Tensor, " n"],
    classes: int,
    views: int = 0,
    *,
    factors: Float[Tensor, " d"] | None = None,
) -> Ridge:
    """Fit the head. Its penalty is the one of `PENALTIES` with the least leave-one-out loss, each at its best scale.

    An image that is left out is left out of everything, its views and the means included: held fixed, they would give
    it away, as all centred targets sum to zero. Only the bias is then set to the shares of all images, because the
    others alone say that its class is rarer, which at two or three images a class decides the answer.

    Args:
        features: of the support images, and then of each of their ``views``; computed with in float64.
        labels: of the images, from 0 to ``classes - 1``, each at least once.
        classes: two or more.
        views: of each image. The head is judged on the images alone.
        factors: what the features are multiplied by first, such as `evenly`.

    Raises:
        DataError: fewer than two classes, a class without an image, or a label outside.
        NonFiniteError: NaN or infinity in the features.
    """
    counts = check_labels(labels, classes)
    if not bool(torch.isfinite(features).all()):
        raise NonFiniteError(
            "received features of the support images with NaN or infinity; expected finite numbers; check the images "
            "and the model's weights"
        )
    x, y = features.detach().double(), F.one_hot(labels.long(), classes).double()
    x = x if factors is None else x * factors.to(x)
    choice = choose(x - x.mean(0), y, counts[labels.long()] > 1)
    weight, bias = solve(x, labels.repeat(1 + views), classes, choice.penalty)
    weight = weight if factors is None else weight * factors.to(x)
    return Ridge(weight * choice.scale, bias * choice.scale, choice.penalty, choice.scale, choice.accuracy, choice.loss)


def evenly(x: Float[Tensor, "m d"]) -> Float[Tensor, " d"]:
    """What to multiply features by, so that they weigh more evenly: ``(deviation / their mean + FLOOR)^(-1/2)``.

    Pooled, rectified features that are large on the average vary most, so a few of them decide what is alike. Hu et al.
    (2021, "Leveraging the feature distribution in transfer-based few-shot learning") take the root of the features
    themselves, which no linear head can. It is for one image a class; with more, leaving one out can judge a head,
    and does not see what little this gives (LOG.md, 2026-11-28).
    """
    deviation = x.std(0, correction=0)
    mean = deviation.mean()
    return (deviation / mean + FLOOR).rsqrt() if float(mean) > 0 else torch.ones_like(deviation)


def solve(
    features: Float[Tensor, "m d"], labels: Int[Tensor, " m"], classes: int, penalty: float
) -> tuple[Float[Tensor, "classes d"], Float[Tensor, " classes"]]:
    """Weight and bias of ridge regression on one-hot targets; differentiable in the features.

    Args:
        penalty: as a share of the features' mean squared norm about their mean; above 0.
    """
    y = F.one_hot(labels.long(), classes).to(features)
    mean, share = features.mean(0), y.mean(0)
    x, y = features - mean, y - share
    ridge = penalty * mean_square(x)
    n, d = x.shape
    if n <= d:
        weight = torch.linalg.solve(x @ x.T + ridge * torch.eye(n).to(x), y).T @ x
    else:
        weight = torch.linalg.solve(x.T @ x + ridge * torch.eye(d).to(x), x.T @ y).T
    return weight, share - weight @ mean


def choose(x: Float[Tensor, "m d"], y: Float[Tensor, "n classes"], counted: Bool[Tensor, " n"]) -> Choice:
    """The penalty and the scale with the least leave-one-out loss.

    Args:
        x: centred features of every set.
        y: one-hot targets.
        counted: which images are not alone in their class.
    """
    if not bool(counted.any()):
        return Choice(DEFAULT_PENALTY if len(x) == len(y) else VIEWED_PENALTY, DEFAULT_SCALE)
    values, basis = frame(x)
    labels, best = y.argmax(1)[counted], None
    smoothing = smoothing_of(len(labels), y.shape[1])
    penalties = torch.tensor(PENALTIES, dtype=torch.float32).to(x)
    numbers = y.numel() if len(x) == len(y) else basis.numel()
    for some in penalties.split(max(1, LARGEST // numbers)):
        left_out = left_out_predictions(values, basis, y, some * mean_square(x))[:, counted]
        scales = best_scales(left_out, labels, smoothing)
        for penalty, regressed, scale in zip(some.tolist(), left_out, scales.tolist(), strict=True):
            loss = float(F.cross_entropy(regressed * scale, labels, label_smoothing=smoothing))
            if best is None or best.loss is None or loss < best.loss:
                best = Choice(penalty, scale, float((regressed.argmax(1) == labels).double().mean()), loss)
    assert best is not None
    return best


def frame(x: Float[Tensor, "m d"]) -> tuple[Float[Tensor, " k"], Float[Tensor, "m k"]]:
    """``e`` and ``P`` such that the hat matrix at any penalty is ``P diag(1 / (e + penalty)) P.T``."""
    if x.shape[0] <= x.shape[1]:
        values, vectors = torch.linalg.eigh(x @ x.T)
        values = values.clamp(min=0)
        return values, vectors * values.sqrt()
    values, vectors = torch.linalg.eigh(x.T @ x)
    return values.clamp(min=0), x @ vectors


def left_out_predictions(
    values: Float[Tensor, " k"], basis: Float[Tensor, "m k"], y: Float[Tensor, "n classes"], ridge: Float[Tensor, " l"]
) -> Float[Tensor, "l n classes"]:
    """What the head fitted to all other images says of each, but for its bias (see `fit_ridge`), at each penalty.

    ``y - (y - H y) / (1 - h)`` with ``H`` the hat matrix, here of the bias too, and ``h`` its diagonal (Rifkin and
    Lippert 2007, section 3). With views an image goes with all of its own: then ``h`` is its block of ``H``.

    Args:
        values, basis: from `frame`.
        ridge: the penalties themselves.
    """
    n, share, weights = len(y), y.mean(0), 1 / (values + ridge[:, None])
    sets = len(basis) // n
    every = y.repeat(sets, 1)
    residual = every - share - basis @ (weights[:, :, None] * (basis.T @ every))
    if sets == 1:
        apart = residual / (1 - 1 / n - weights @ basis.square().T)[:, :, None]
    else:
        own = basis.unflatten(0, (sets, n)).transpose(0, 1)
        hat = 1 / len(basis) + (own * weights[:, None, None]) @ own.mT
        blocks = torch.eye(sets).to(hat) - hat
        apart = torch.linalg.solve(blocks, residual.unflatten(1, (sets, n)).transpose(1, 2))[:, :, 0]
    of_others = (n * share - y) / (n - 1)
    return y - apart + share - of_others


def smoothing_of(images: int, classes: int) -> float:
    """Share of the labels that is spread over all classes: one made-up image of each class among the real ones."""
    return classes / (images + classes)


def best_scales(
    regressed: Float[Tensor, "l n classes"], labels: Int[Tensor, " n"], smoothing: float = 0.0
) -> Float[Tensor, " l"]:
    """The scale in `SCALES` with the least cross-entropy, which is convex in it: bisection of its slope."""
    named = regressed[:, torch.arange(len(labels), device=labels.device), labels].mean(1)
    target = (1 - smoothing) * named + smoothing * regressed.mean((1, 2))
    low, high = (torch.full_like(target, end) for end in SCALES)
    for _ in range(BISECTIONS):
        middle = (low * high).sqrt()
        expected = ((regressed * middle[:, None, None]).softmax(2) * regressed).sum(2).mean(1)
        above = expected > target
        low, high = torch.where(above, low, middle), torch.where(above, middle, high)
    return (low * high).sqrt()


def mean_square(x: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """Mean squared norm of centred features; 1 where they are all equal, so that a penalty is a penalty."""
    square = x.square().sum(1).mean()
    return torch.where(square > 0, square, torch.ones_like(square))


def check_labels(
    labels: Int[Tensor, " n"], classes: int, names: Sequence[str] | None = None
) -> Int[Tensor, " classes"]:
    """Images of each class.

    Args:
        names: of the classes, for the message.

    Raises:
        DataError: see `fit_ridge`.
    """
    if classes < 2:
        raise DataError(
            f"received a support set of {classes} class; expected at least two, which a classifier can tell apart; add "
            "images of another class"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise DataError(
            f"received labels from {int(labels.min())} to {int(labels.max())} for {classes} classes; expected 0 to "
            f"{classes - 1}; number the classes from 0"
        )
    counts = torch.bincount(labels.long(), minlength=classes)
    if not bool(counts.all()):
        empty = listed([names[i] if names else i for i in torch.nonzero(counts == 0).flatten().tolist()])
        raise DataError(
            f"received no support image of class {empty}; expected at least one of each of the {classes} classes; add "
            "images or leave the class out"
        )
    return counts
