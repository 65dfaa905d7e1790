"""The tuned baselines: the ridge head first, then ordinary steps on it and on a part of the backbone.

All start from the same head and take the same AdamW steps over the support set; only what learns differs. The rate is
constant, if nothing else is asked for, so that one run gives every number of steps on its way. Batch norms keep the
moments they were trained with: a few images of one task would be poor moments. A name that ends in ``-views`` is the
same method on random views: new ones of each image in every step, as many as ours.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.few_shot.backbones import Backbone, features_of, frozen_features
from benchmarks.few_shot.clock import now
from benchmarks.few_shot.lora import RANK, add_adapters
from benchmarks.few_shot.passes import Passes, counting
from hypercompress.data import Episode
from hypercompress.running.copying import copy_of
from hypercompress.running.tracing import NORMS
from hypercompress.transfer import fit_ridge
from hypercompress.transfer.views import VIEWS, step_viewer

VIEWED = "-views"
TUNED = ("probe", "norm", "lora", "full", *(method + VIEWED for method in ("norm", "lora", "full")))
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
BATCH = 32  # images of a step; a smaller support set is taken whole


@dataclass(frozen=True)
class Outcome:
    """An episode after some steps.

    Args:
        accuracy: on the query set, in [0, 1].
        forward, backward: images that passed through the backbone, as a multiple of the support images.
        seconds: for the adaptation alone; ``None``: it was not alone on the machine.
    """

    accuracy: float
    forward: float
    backward: float
    seconds: float | None


def classifier(model: nn.Module) -> nn.Module:
    """The layer that the ridge head replaces."""
    found: nn.Module = model.get_classifier()  # type: ignore[operator]
    return found


def views_of(method: str) -> int:
    """Views of each image that a method makes."""
    return VIEWS if method.endswith(VIEWED) else 0


def learning(model: nn.Module, method: str, seed: int) -> list[nn.Parameter]:
    """The parameters of a frozen backbone that a method trains: none, norms, adapters, all."""
    head, method = classifier(model), method.removesuffix(VIEWED)
    if method == "probe":
        return []
    if method == "norm":
        norms = [module for module in model.modules() if isinstance(module, NORMS)]
        return [p for module in norms for p in module.parameters(recurse=False)]
    if method == "lora":
        return add_adapters(model, head, RANK, seed)
    kept = {id(p) for p in head.parameters()}
    return [p for p in model.parameters() if id(p) not in kept]


def ridge_head(features: Tensor, labels: Tensor, classes: int) -> nn.Linear:
    """The closed-form head as a layer."""
    ridge = fit_ridge(features.cpu(), labels.cpu(), classes)  # so small a system is solved faster there
    head = nn.Linear(features.shape[1], classes).to(features)
    head.weight.data.copy_(ridge.weight)
    head.bias.data.copy_(ridge.bias)
    return head


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of right answers."""
    return float((logits.argmax(1) == labels).double().mean())


def constant(_: int) -> float:
    """The share of the rate at each step: all of it."""
    return 1.0


def tune(
    backbone: Backbone,
    last: str,
    episode: Episode,
    method: str,
    rate: float,
    steps: Sequence[int],
    seed: int,
    share: Callable[[int], float] = constant,
) -> dict[int, Outcome]:
    """One episode by one of `TUNED`, judged after each number of steps.

    Args:
        last: see `counting`.
        rate: of AdamW, without weight decay.
        seed: of the order of the images and of LoRA's random halves.
        share: of the rate, at each step.
    """
    model = copy_of(backbone.model).eval().requires_grad_(False)
    found, spent, clock = dict[int, Outcome](), 0.0, now(backbone.device)
    with counting(model, last) as passes:
        frozen = frozen_features(model, episode.support)
        head = ridge_head(frozen, episode.support_labels, len(episode.classes))
        parameters = learning(model, method, seed)
        for parameter in parameters:
            parameter.requires_grad_(True)
        optimizer = torch.optim.AdamW([*parameters, *head.parameters()], rate, weight_decay=0.0)
        rates = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        batches, change = Batches(len(frozen), seed), step_viewer(views_of(method), seed)
        for step in range(1, max(steps) + 1):
            chosen = batches.draw().to(frozen.device)
            seen, named = change(episode.support[chosen], episode.support_labels[chosen])
            inputs = features_of(model, seen) if parameters else frozen[chosen]
            loss = F.cross_entropy(head(inputs), named)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rates.step()
            if step in steps:
                spent += now(backbone.device) - clock
                found[step] = _judge(model, head, episode, passes, spent)
                clock = now(backbone.device)
    return found


class Batches:
    """Places of the support images, batch after batch; each image once before any comes again."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.generator = count, torch.Generator().manual_seed(seed)
        self.order = torch.empty(0, dtype=torch.int64)

    def draw(self) -> Tensor:
        size = min(BATCH, self.count)
        if len(self.order) < size:
            self.order = torch.cat([self.order, torch.randperm(self.count, generator=self.generator)])
        chosen, self.order = self.order[:size], self.order[size:]
        return chosen


def _judge(model: nn.Module, head: nn.Module, episode: Episode, passes: Passes, spent: float) -> Outcome:
    with passes.paused(), torch.no_grad():
        right = accuracy(head(frozen_features(model, episode.query)), episode.query_labels)
    images = len(episode.support)
    return Outcome(right, passes.forward / images, passes.backward / images, spent)
