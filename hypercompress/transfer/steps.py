"""How far to go along ordinary steps: judged on support images that were left out of them.

On a task that is near to what the backbone was trained on, steps on a few images lose what the closed form has; on a
far one they gain more than anything else (LOG.md, 2026-11-28). To know which it is, each half of the support set takes
the steps and is asked about the other half. Between the weights before and after the steps lie some that are often
better than both (Wortsman et al. 2022, WiSE-FT, section 3).

Shape letters: ``n`` images of the support set; ``m`` of them that were left out.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from hypercompress.calling import evaluating
from hypercompress.transfer.ridge import best_scales
from hypercompress.transfer.support import BATCH, Support

SHARES = (0.0, 0.5, 1.0)  # of the way from the weights before the steps to those after them
SCALES = (1 / 32, 4.0)  # of logits: inverse temperatures that are tried


@dataclass(frozen=True)
class Verdict:
    """How far the steps are followed.

    Args:
        share: one of `SHARES`; 0: they are of no use.
        why: in words.
        loss, accuracy: of left-out images at each of `SHARES`, in nats at the best temperature and in [0, 1]; empty
            where nothing was left out.
        images: that were.
    """

    share: float
    why: str
    loss: tuple[float, ...] = ()
    accuracy: tuple[float, ...] = ()
    images: int = 0


AS_ASKED = Verdict(1.0, "as asked for")


@dataclass(frozen=True)
class Tunable:
    """A classifier of the new classes, and steps that change it in place."""

    model: nn.Module
    take: Callable[[], None]


def judge_steps(begin: Callable[[Support], Tunable], support: Support, device: torch.device, seed: int) -> Verdict:
    """The share whose weights have the least loss on images that were left out, each half of a class in turn.

    Takes the steps twice, with half of the images each. A class of one image is in both halves and judges nothing.

    Args:
        begin: what is there before the steps, made of a part of the support set.
        seed: of the halves.
    """
    if not support.fixed:
        return Verdict(1.0, "images that are read anew in each pass are not left out")
    images, labels = (torch.cat(column) for column in zip(*support.on(device), strict=True))
    first, second, judging = halves(labels, seed)
    if not bool(judging.any()):
        return Verdict(1.0, "one image a class: nothing can be left out to judge the steps")
    said: dict[float, list[Tensor]] = {share: [] for share in SHARES}
    asked = list[Tensor]()
    for seen, left_out in ((first, second & judging), (second, first & judging)):
        tunable = begin(_part(images[seen], labels[seen], support.classes))
        before = _weights(tunable.model)
        tunable.take()
        after = _weights(tunable.model)
        for share, logits in said.items():
            go(tunable.model, before, after, share)
            logits.append(_logits(tunable.model, images[left_out]))
        asked.append(labels[left_out])
    answers, every = torch.cat(asked), torch.stack([torch.cat(logits) for logits in said.values()])
    losses = calibrated_losses(every, answers)
    accuracies = (every.argmax(2) == answers).double().mean(1)
    share = SHARES[int(losses.argmin())]
    return Verdict(share, "loss of left-out images", tuple(losses.tolist()), tuple(accuracies.tolist()), len(answers))


def follow(tunable: Tunable, share: float) -> None:
    """Take the steps, and go back to so large a share of the way."""
    if share == 0:
        return
    before = _weights(tunable.model)
    tunable.take()
    if share < 1:
        go(tunable.model, before, _weights(tunable.model), share)


@torch.no_grad()
def go(model: nn.Module, before: Mapping[str, Tensor], after: Mapping[str, Tensor], share: float) -> None:
    """Put the weights that lie at a share of the way from one set of them to another into the model."""
    for name, parameter in model.named_parameters():
        parameter.copy_(torch.lerp(before[name], after[name], share))


def halves(labels: Int[Tensor, " n"], seed: int) -> tuple[Bool[Tensor, " n"], Bool[Tensor, " n"], Bool[Tensor, " n"]]:
    """The two halves of each class, drawn by ``seed``, and which images have one of their class in the other half."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed)).to(labels.device)
    first, second = torch.zeros_like(labels, dtype=torch.bool), torch.zeros_like(labels, dtype=torch.bool)
    judging = torch.ones_like(first)
    for label in labels.unique():
        places = order[labels[order] == label]
        middle = len(places) // 2
        first[places[:middle]] = second[places[middle:]] = True
        if len(places) == 1:
            first[places] = second[places] = True
            judging[places] = False
    return first, second, judging


def calibrated_losses(logits: Float[Tensor, "shares m classes"], labels: Int[Tensor, " m"]) -> Float[Tensor, " shares"]:
    """Cross-entropy in nats, each at its best temperature: steps make a model surer of itself, rightly or not."""
    scaled = logits.double() * best_scales(logits.double(), labels, within=SCALES)[:, None, None]
    every = F.cross_entropy(scaled.flatten(0, 1), labels.repeat(len(logits)), reduction="none")
    return every.view(len(logits), len(labels)).mean(1)


def _part(images: Tensor, labels: Tensor, classes: int) -> Support:
    return Support(list(zip(images.split(BATCH), labels.split(BATCH), strict=True)), classes)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def _logits(model: nn.Module, images: Tensor) -> Tensor:
    with evaluating(model), torch.no_grad():
        logits = [model(batch) for batch in images.split(BATCH)]
    return torch.cat(logits)
