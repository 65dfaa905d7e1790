"""A learning rate from how far a student is from its teacher when the steps begin, and how steep the way is.

AdamW moves each weight by about its rate against the sign of its gradient, which to first order lowers the loss by the
rate times the 1-norm of the gradient. What there is to be lowered is known: the KL, whose least value is 0. The rate at
which one step would do all of it is Polyak's step (B. T. Polyak, "Introduction to Optimization", 1987, chapter 5; for
stochastic gradients N. Loizou et al. 2021, arXiv 2002.10542) in the norm of sign descent. Too large a rate makes a near
student worse, a far one gets nowhere by the rate that suits a near one, and a large network bears less than a small one
(LOG.md, 2026-11-28).
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from hypercompress.errors import NonFiniteError
from hypercompress.losses import distillation_kl
from hypercompress.running.calling import evaluating, keeping_random_state
from hypercompress.running.outputs import logits_of
from lightning_modules.optimization import Optimization, SettingError

# Of the highest rate to Polyak's step: a schedule's mean is about half of its highest rate. Near the best of 1, 2 and 4
# for 40 and for 100 steps, on networks that meta-training has seen (LOG.md, 2026-11-28).
PER_POLYAK = 2.0
HIGHEST = 1e-2  # of any run, as in the grids of the benchmarks: a far student of few weights would get more
ROUNDING = 1e-6  # nats: what is below says nothing, and neither does its gradient
OF_NUMBERS = 5e-4  # where outputs are no logits: their unit says nothing of how far a student is
CHOSEN_FOR = ("adam", "adamw")


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
    """The KL on one batch and the 1-norm of its gradient, both in evaluation mode and in the model's own precision; the
    model, its gradients and buffers and torch's random state stay as they were.

    Args:
        model: with at least one parameter that asks for a gradient; the others do not count.
        target: the teacher's logits.
        mean: over the processes, of the KL and of each gradient.

    Returns:
        nats, and nats for each unit that every weight moves.
    """
    tuned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with (
        keeping_random_state(model),
        evaluating(model),
        torch.enable_grad(),
        torch.autocast(images.device.type, enabled=False),  # small gradients are 0 in half precision
    ):
        kl = distillation_kl(model(images), target.detach())
        gradients = torch.autograd.grad(kl, tuned, allow_unused=True, materialize_grads=True)
    slopes = [mean(gradient).abs().sum(dtype=torch.float32) for gradient in gradients]
    return mean(kl.detach()), torch.stack(slopes).sum()


def rate_for(
    model: nn.Module, images: Float[Tensor, "b c h w"], target: Float[Tensor, "b ..."], strategy: Strategy
) -> float:
    """The highest rate of a run that starts from ``model``, by one batch of each process (`kl_and_slope`).

    Args:
        images: a batch as the steps have it.
        target: the teacher's output for it.

    Raises:
        NonFiniteError: the KL or its gradient is no finite number, or there is a KL without a gradient.
    """
    if logits_of(target) is None:
        rank_zero_info(f"outputs are no logits: the learning rate is {OF_NUMBERS:g}")
        return OF_NUMBERS
    found = kl_and_slope(model, images, target, lambda tensor: strategy.reduce(tensor, reduce_op="mean"))
    kl, slope = (float(value) for value in found)
    near = kl < ROUNDING
    if not (math.isfinite(kl) and math.isfinite(slope)) or (slope == 0 and not near):
        raise NonFiniteError(
            f"received a student whose KL to the teacher is {kl:g} on the first batch, with a gradient of {slope:g}; "
            "expected finite numbers, and a way to go where there is a distance; look for broken images or weights, or "
            "set --model.optimization.lr to a number"
        )
    rate = 0.0 if near else min(HIGHEST, PER_POLYAK * kl / slope)
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
