"""A learning rate from how far a student is from its teacher when the steps begin, and how steep the way is.

AdamW moves each weight by about its rate against the sign of its gradient, which to first order lowers the loss by the
rate times the 1-norm of the gradient. What there is to be lowered is known: the KL, whose least value is 0. The rate at
which one step would do all of it is Polyak's step (B. T. Polyak, "Introduction to Optimization", 1987, chapter 5; for
stochastic gradients N. Loizou et al. 2021, arXiv 2002.10542) in the norm of sign descent. Too large a rate makes a near
student worse, a far one gets nowhere by the rate that suits a near one, and a large network bears less than a small one
(LOG.md, 2026-11-28).
"""

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from hypercompress.errors import NonFiniteError
from hypercompress.losses import distillation_kl
from hypercompress.running.calling import evaluating, keeping_random_state
from hypercompress.running.outputs import logits_of
from lightning_modules.data import images_of
from lightning_modules.optimization import Optimization, SettingError

# Of the highest rate to Polyak's step: a schedule's mean is about half of its highest rate. Near the best of 1, 2 and 4
# for 40 and for 100 steps, on networks that meta-training has seen (LOG.md, 2026-11-28).
PER_POLYAK = 2.0
HIGHEST = 1e-2  # of any run, as in the grids of the benchmarks: a far student of few weights would get more
ROUNDING = 1e-6  # nats: what is below says nothing, and neither does its gradient
OF_NUMBERS = 5e-4  # where outputs are no logits: their unit says nothing of how far a student is
CHOSEN_FOR = ("adam", "adamw")
SEEN = 128  # images, at least: the KL and slope of a few say little of the next few

Answered = tuple[Tensor, Tensor]  # images, and the teacher's logits for them


def require_choice(optimization: Optimization, followed: bool) -> None:
    """Check that a rate of ``auto`` can be chosen.

    Args:
        followed: whether the steps follow a teacher, and no labels.

    Raises:
        SettingError: it cannot.
    """
    if optimization.lr == "auto" and not (followed and optimization.optimizer in CHOSEN_FOR):
        raise SettingError(
            f"received lr auto for optimizer {optimization.optimizer}{'' if followed else ' and labels to follow'}; "
            f"expected a number, as auto is for {' or '.join(CHOSEN_FOR)} and a teacher without labels; set "
            "--model.optimization.lr"
        )


def kl_and_slope(
    model: nn.Module,
    images: Float[Tensor, "b c h w"],
    target: Float[Tensor, "b ..."],
    mean: Callable[[Tensor], Tensor] = lambda tensor: tensor,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """`of_step` of one batch."""
    return of_step(model, [(images, target)], mean)


def of_step(
    model: nn.Module, batches: Iterable[Answered], mean: Callable[[Tensor], Tensor] = lambda tensor: tensor
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """The KL on the batches of one step and the 1-norm of its gradient, both in evaluation mode and in the model's own
    precision; the model, its gradients and buffers and torch's random state stay as they were.

    Args:
        model: with at least one parameter that asks for a gradient; the others do not count.
        batches: images, and the teacher's logits for them; one or more, of which each weighs alike.
        mean: over the processes, of the KL and of each gradient.

    Returns:
        nats, and nats for each unit that every weight moves.
    """
    tuned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kls, sums = list[Tensor](), list[Tensor]()
    with keeping_random_state(model), evaluating(model):
        for images, target in batches:
            # Small gradients are 0 in half precision.
            with torch.enable_grad(), torch.autocast(images.device.type, enabled=False):
                kl = distillation_kl(model(images), target.detach())
                gradients = torch.autograd.grad(kl, tuned, allow_unused=True, materialize_grads=True)
            kls.append(kl.detach())
            sums = [a + b for a, b in zip(sums, gradients, strict=True)] if sums else list(gradients)
    slopes = [mean(gradient / len(kls)).abs().sum(dtype=torch.float32) for gradient in sums]
    return mean(torch.stack(kls).mean()), torch.stack(slopes).sum()


def first_steps(
    system: LightningModule, images: Float[Tensor, "b c h w"], answer: Callable[[Tensor], Tensor]
) -> Iterator[Iterator[Answered]]:
    """The batches of each of a run's first steps: of as many as see `SEEN` images, one at least. What a step moves
    along is the mean gradient of what is accumulated, on all processes.

    Args:
        images: the first batch; of data that are not `ImageDataModule`'s no other is read.
        answer: the teacher's logits.
    """
    data, trainer = images_of(system), system.trainer
    if data is None:
        yield iter([(images, answer(images))])
        return
    passes = trainer.accumulate_grad_batches
    ahead = (batch.to(images) for batch, _ in data.beginning())
    for _ in range(math.ceil(SEEN / (len(images) * passes * trainer.world_size))):
        step = islice(ahead, passes)
        if (first := next(step, None)) is not None:
            yield ((batch, answer(batch)) for batch in chain([first], step))


def rate_for(model: nn.Module, steps: Iterable[Iterable[Answered]], strategy: Strategy) -> float:
    """The highest rate of a run that starts from ``model``: the mean of Polyak's rate over some steps.

    A step of few images has a steeper slope, as their gradients differ, and so a lower rate, which it needs (LOG.md,
    2026-11-30).

    Args:
        steps: see `first_steps`; of each process its own.

    Raises:
        NonFiniteError: the KL or its gradient is no finite number, or there is a KL without a gradient.
    """
    found = list[tuple[Tensor, Tensor]]()
    for step in steps:
        batches = iter(step)
        first = next(batches)
        if logits_of(first[1]) is None:
            rank_zero_info(f"outputs are no logits: the learning rate is {OF_NUMBERS:g}")
            return OF_NUMBERS
        found.append(of_step(model, chain([first], batches), lambda tensor: strategy.reduce(tensor, reduce_op="mean")))
    kls, slopes = (torch.stack(values) for values in zip(*found, strict=True))
    kl, slope, far = float(kls.mean()), float(slopes.mean()), kls >= ROUNDING
    if not (math.isfinite(kl) and math.isfinite(slope)) or bool((far & (slopes == 0)).any()):
        raise NonFiniteError(
            f"received a student whose KL to the teacher is {kl:g} on the first images, with a gradient of {slope:g}; "
            "expected finite numbers, and a way to go where there is a distance; look for broken images or weights, or "
            "set --model.optimization.lr to a number"
        )
    near = kl < ROUNDING
    rate = 0.0 if near else min(HIGHEST, PER_POLYAK * float(torch.where(far, kls / slopes, 0.0).mean()))
    rank_zero_info(f"the student starts {kl:.3g} nats from its teacher: the learning rate is {rate:.2g}")
    if near:
        rank_zero_warn("the student answers as its teacher does: there is nothing to learn")
    return rate


def scale_rates(optimizer: torch.optim.Optimizer, schedule: LRScheduler, factor: float) -> None:
    """Multiply the rates of an optimiser, now and at each step of its schedule, in place."""
    for group in optimizer.param_groups:
        group["lr"] *= factor
        group["initial_lr"] *= factor
    schedule.base_lrs = [rate * factor for rate in schedule.base_lrs]
