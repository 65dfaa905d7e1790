"""Ordinary steps after the closed form, by AdamW: on norms, biases and the head, or on everything."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypercompress.errors import NonFiniteError
from hypercompress.running.calling import Progress, evaluating
from hypercompress.running.memory import finite
from hypercompress.transfer.adaptable import Role, Site

WARMUP = 0.25  # of the steps: AdamW's first ones move every weight by the rate, whatever its gradient
LEAST = 2  # steps of it
LAST = 5  # steps whose loss says how well all of them went

Change = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # of the images and labels of a step


class Tuned(StrEnum):
    """What the steps tune."""

    NORMS = "norms"  # scales and shifts of norms, biases, and the head
    ALL = "all"  # every parameter


def tuned_names(sites: Iterable[Site], model: nn.Module, classifier: str, tuned: Tuned = Tuned.NORMS) -> list[str]:
    """Names of the parameters that are tuned: of `names_for` those that are not frozen, and the classifier's, which is
    a new one.
    """
    head, asking = head_names(classifier), {name: p.requires_grad for name, p in model.named_parameters()}
    return [name for name in names_for(sites, model, classifier, tuned) if asking[name] or name in head]


def names_for(sites: Iterable[Site], model: nn.Module, classifier: str, tuned: Tuned) -> list[str]:
    """Names of the parameters that are tuned where nothing is frozen; of `Tuned.NORMS` those of a core are left as they
    were generated.
    """
    there = [name for name, _ in model.named_parameters()]
    if tuned is Tuned.ALL:
        return there
    modules = [site.module for site in sites if site.role is not Role.CORE] + [classifier]
    names = dict.fromkeys(f"{module}.{kind}" for module in modules for kind in ("weight", "bias"))
    biases = {site.module for site in sites if site.role is Role.BIAS} - {classifier}
    return [name for name in names if name in there and name.removesuffix(".weight") not in biases]


def head_names(classifier: str) -> set[str]:
    """Names of the classifier's parameters."""
    return {f"{classifier}.weight", f"{classifier}.bias"}


def tune(
    model: nn.Module,
    names: Iterable[str],
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    steps: int,
    rate: float,
    change: Change = lambda images, labels: (images, labels),
    progress: Progress | None = None,
) -> float:
    """Cross-entropy on the support set, one batch a step, in place. BatchNorm uses its running moments, as in use.

    Args:
        model: a classifier of the new classes.
        names: parameters to tune; the others stay frozen.
        batches: the support set from its first batch; one batch a step, and called again when they end.
        steps: 0 or more.
        rate: AdamW's highest learning rate, see `schedule`.
        change: such as `views.step_viewer`.
        progress: called with ``steps``, the number of them that are done, and the rate in words.

    Returns:
        the mean loss of the last `LAST` steps, in nats; NaN without any.

    Raises:
        NonFiniteError: the loss, or a weight after the last step, became NaN or infinite.
    """
    asking = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    chosen = set(names)
    tuned = [p for name, p in model.named_parameters() if name in chosen]
    optimizer = torch.optim.AdamW(tuned, lr=rate, weight_decay=0.0)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(steps))
    losses = deque[Tensor](maxlen=LAST)
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen)
        with evaluating(model), torch.enable_grad():
            for step, (images, labels) in enumerate(islice(_again(batches), steps)):
                seen, named = change(images, labels)
                loss = F.cross_entropy(model(seen), named)
                if not bool(loss.isfinite()):
                    raise NonFiniteError(
                        f"received a loss of {float(loss.detach())} while tuning; expected a finite one; lower the "
                        "learning rate or take fewer steps"
                    )
                losses.append(loss.detach())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                rates.step()
                if progress is not None:
                    progress("steps", step + 1, f"at a rate of {rate:g}")
        if losses and not all(finite(p) for p in tuned):
            raise NonFiniteError(
                "received NaN or infinity in the weights after the last step; expected finite ones; lower the learning "
                "rate or take fewer steps"
            )
    finally:
        optimizer.zero_grad()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(asking[name])
    return float(torch.stack(list(losses)).mean()) if losses else math.nan


def schedule(steps: int) -> Callable[[int], float]:
    """The learning rate at each step as a share of the highest: up in a straight line for `WARMUP` of the steps, and
    `LEAST` at least, down to 0 along half a cosine. So the first step is a third of the rate or less: one whole step
    cost a small network 11 to 25 points of accuracy (LOG.md, 2026-11-27).
    """
    rise = max(LEAST, int(WARMUP * steps))
    return lambda step: (
        min(1.0, (step + 1) / (rise + 1)) * 0.5 * (1 + math.cos(math.pi * min(step, steps) / max(1, steps)))
    )


def _again(batches: Callable[[], Iterable[tuple[Tensor, Tensor]]]) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches, again and again."""
    while True:
        yield from batches()
