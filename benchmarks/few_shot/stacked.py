"""Episodes of one size tuned together: what learns is stacked, an entry for each episode; everything else is shared.

A small network keeps a card waiting for its next instruction. A step on a stack of episodes needs hardly more of them
than a step on one (torch.func's ``vmap``). AdamW works on each number by itself and every episode has its own loss, so
an episode goes the way it would go alone, but for the order of sums. Seconds are left out: an episode has none of its
own.

Shape letters: ``e`` episodes; ``b`` images of a step; ``n`` support images; ``q`` query images; ``d`` features.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.overrides import TorchFunctionMode

from benchmarks.few_shot.backbones import BATCH, Backbone
from benchmarks.few_shot.lora import Adapter
from benchmarks.few_shot.passes import Passes
from benchmarks.few_shot.tuning import VIEWED, Batches, Outcome, accuracy, constant, learning, ridge_head, views_of
from hypercompress.data import Episode
from hypercompress.running.copying import copy_of
from hypercompress.transfer.backbone import Backbone as Net
from hypercompress.transfer.views import step_viewer


class Stack:
    """Copies of a network that differ in some parameters; `passes` counts the images of one of them.

    Args:
        model: frozen, in evaluation mode; images in, one row for each out.
        parameters: the stacked values of those that differ, by name; none: the model as it is.
        kernels: kernels are among what differs, so that convolutions are to run as `Products` on a card: what vmap
            makes of them, grouped convolutions, cuDNN has no fast gradients for.
    """

    def __init__(
        self, model: nn.Module, parameters: Mapping[str, Float[Tensor, "e *p"]], *, kernels: bool = False
    ) -> None:
        self.model, self.parameters, self.passes = model, dict(parameters), Passes()
        self.products = kernels and next(model.parameters()).device.type == "cuda"

    def __call__(self, images: Float[Tensor, "e b c h w"]) -> Float[Tensor, "e b d"]:
        def one(values: dict[str, Tensor], some: Tensor) -> Any:
            return functional_call(self.model, values, (some,))

        rows: Tensor
        with Products() if self.products else nullcontext():
            if self.parameters:
                rows = vmap(one)(self.parameters, images)
            else:
                rows = self.model(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        self._count(rows)
        return rows

    def frozen(self, images: Float[Tensor, "e n c h w"]) -> Float[Tensor, "e n d"]:
        """The same without gradients, some images of each episode at a time."""
        with torch.no_grad():
            return torch.cat([self(some) for some in images.split(BATCH, dim=1)], dim=1)

    def _count(self, rows: Tensor) -> None:
        passes, images = self.passes, rows.shape[1]

        def backward(_: Tensor) -> None:
            passes.backward += images

        passes.forward += images * passes.running
        if rows.requires_grad and passes.running:
            rows.register_hook(backward)


class Products(TorchFunctionMode):
    """Convolutions of one group as matrix products of patches, which cards are good at for stacked kernels too; and
    BatchNorms and averages as the plain arithmetic they are, since torch's own ask for a memory format, which vmap does
    not know of a product.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.conv2d and not kwargs and len(args) == 7 and args[6] == 1 and not isinstance(args[4], str):
            return patches_product(*args[:6])
        if func is F.adaptive_avg_pool2d and args[1] in (1, (1, 1)):
            return args[0].mean((2, 3), keepdim=True)
        return (batch_norm if func is F.batch_norm else func)(*args, **(kwargs or {}))


def patches_product(
    x: Float[Tensor, "n c h w"],
    weight: Float[Tensor, "out c i j"],
    bias: Float[Tensor, " out"] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Float[Tensor, "n out y x"]:
    """`F.conv2d` of one group."""
    x = F.pad(x, (padding[1], padding[1], padding[0], padding[0]))
    for axis in (0, 1):
        size, step = weight.shape[2 + axis], dilation[axis]
        x = x.unfold(2 + axis, (size - 1) * step + 1, stride[axis])[..., ::step]
    y = torch.einsum("ncyxij,ocij->noyx", x, weight).contiguous()
    return y if bias is None else y + bias[:, None, None]


def batch_norm(
    x: Float[Tensor, "n c h w"],
    mean: Float[Tensor, " c"] | None,
    variance: Float[Tensor, " c"] | None,
    weight: Float[Tensor, " c"] | None = None,
    bias: Float[Tensor, " c"] | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Float[Tensor, "n c h w"]:
    """`F.batch_norm`; of one in use, with running moments and an affine part, without cuDNN."""
    if training or mean is None or variance is None or weight is None or bias is None:
        return F.batch_norm(x, mean, variance, weight, bias, training, momentum, eps)
    scale = weight * (variance + eps).rsqrt()
    return x * scale[:, None, None] + (bias - mean * scale)[:, None, None]


def tune_together(
    backbone: Backbone,
    episodes: Sequence[Episode],
    method: str,
    rate: float,
    steps: Sequence[int],
    seeds: Sequence[int],
    share: Callable[[int], float] = constant,
) -> list[dict[int, Outcome]]:
    """`tune` for episodes of one size.

    Args:
        seeds: one for each episode.
        share: of the rate, at each step.
    """
    net = Net(copy_of(backbone.model).eval().requires_grad_(False))
    support, labels = stacked(episodes)
    plain = Stack(net, {})
    frozen = plain.frozen(support)
    heads = [ridge_head(f, e.support_labels, len(e.classes)) for f, e in zip(frozen, episodes, strict=True)]
    head = tuple(torch.stack([getattr(h, name).detach() for h in heads]) for name in ("weight", "bias"))
    stack = Stack(net, learned(net, method, seeds), kernels=method.removesuffix(VIEWED) in ("lora", "full"))
    change = together([step_viewer(views_of(method), seed) for seed in seeds])
    stack.passes = plain.passes
    tensors = [value.requires_grad_(True) for value in (*stack.parameters.values(), *head)]
    optimizer = torch.optim.AdamW(tensors, rate, weight_decay=0.0)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    rows = torch.arange(len(episodes), device=support.device)[:, None]
    found: list[dict[int, Outcome]] = [{} for _ in episodes]
    for step, chosen in enumerate(orders(support.shape[1], seeds, max(steps)).to(support.device), 1):
        seen, named = change(support[rows, chosen], labels[rows, chosen])
        features = stack(seen) if stack.parameters else frozen[rows, chosen]
        loss = each_loss(features @ head[0].mT + head[1][:, None], named)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        if step in steps:
            for one, outcome in zip(found, judge(stack, head, episodes), strict=True):
                one[step] = outcome
    return found


def together(
    changes: Sequence[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]],
) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Each episode's change of its own images [e, b, c, h, w] and labels [e, b]."""

    def every(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        found = [change(some, named) for change, some, named in zip(changes, images, labels, strict=True)]
        seen, called = (torch.stack(column) for column in zip(*found, strict=True))
        return seen, called

    return every


def learned(net: Net, method: str, seeds: Sequence[int]) -> dict[str, Float[Tensor, "e *p"]]:
    """What a method trains, stacked, by name in the network, which gets adapters for ``lora``."""
    parameters = learning(net.model, method, seeds[0])
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    values = {names[id(p)]: p.detach().expand(len(seeds), *p.shape).clone() for p in parameters}
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    for adapter in (
        module for module in net.modules() if isinstance(module, Adapter)
    ):  # in the order of `add_adapters`
        name = names[id(adapter.a)]
        values[name] = torch.stack([adapter.draw(generator) for generator in generators]).to(adapter.a)
    return values


def orders(count: int, seeds: Sequence[int], steps: int) -> Int[Tensor, "steps e b"]:
    """Places of the support images of each step, as `tune` draws them."""
    drawn = [Batches(count, seed) for seed in seeds]
    return torch.stack([torch.stack([batches.draw() for batches in drawn]) for _ in range(steps)])


def stacked(episodes: Sequence[Episode]) -> tuple[Float[Tensor, "e n c h w"], Int[Tensor, "e n"]]:
    """Support images and labels of episodes of one size."""
    return torch.stack([e.support for e in episodes]), torch.stack([e.support_labels for e in episodes])


def each_loss(logits: Float[Tensor, "e b k"], labels: Int[Tensor, "e b"]) -> Float[Tensor, ""]:
    """Sum over the episodes of their cross-entropies."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / labels.shape[1]


def judge(stack: Stack, head: Sequence[Tensor], episodes: Sequence[Episode]) -> list[Outcome]:
    """Each episode's accuracy on its query images and what it cost until now.

    Args:
        head: stacked weight [e, k, d] and bias [e, k]; none, if the network ends in it.
    """
    with stack.passes.paused(), torch.no_grad():
        logits = stack.frozen(torch.stack([e.query for e in episodes]))
        if head:
            logits = logits @ head[0].mT + head[1][:, None]
    images = len(episodes[0].support)
    cost = stack.passes.forward / images, stack.passes.backward / images
    return [Outcome(accuracy(row, e.query_labels), *cost, None) for row, e in zip(logits, episodes, strict=True)]
