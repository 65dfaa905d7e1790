"""A learning rate from how far a student is from its teacher when the steps begin.

AdamW moves each weight by about its rate, whatever the gradient: a rate is a distance, and the distance to be gone is
the square root of the KL. Too large a rate makes a near student worse; a far one gets nowhere by the rate that suits
a near one (LOG.md, 2026-11-27).
"""

import math

import torch
from jaxtyping import Float
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from hypercompress.calling import evaluating, keeping_random_state
from hypercompress.errors import NonFiniteError
from hypercompress.losses import distillation_kl
from hypercompress.outputs import logits_of
from lightning_modules.teacher import Optimization, SettingError

PER_ROOT_KL = 2.5e-3  # of the rate to the root of the KL in nats; chosen on teachers that meta-training has seen
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


@torch.no_grad()
def kl_of_start(model: nn.Module, images: Float[Tensor, "b c h w"], target: Float[Tensor, "b ..."]) -> Tensor:
    """The KL on one batch in evaluation mode; the model, its buffers and torch's random state stay as they were."""
    with keeping_random_state(model), evaluating(model):
        return distillation_kl(model(images), target)


def rate_for(
    model: nn.Module, images: Float[Tensor, "b c h w"], target: Float[Tensor, "b ..."], strategy: Strategy
) -> float:
    """The highest rate of a run that starts from ``model``, by the KL on one batch (`kl_of_start`); the mean of all
    ranks'.

    Args:
        images: a batch as the steps have it.
        target: the teacher's output for it.

    Raises:
        NonFiniteError: the KL is no finite number.
    """
    if logits_of(target) is None:
        rank_zero_info(f"outputs are no logits: the learning rate is {OF_NUMBERS:g}")
        return OF_NUMBERS
    kl = float(strategy.reduce(kl_of_start(model, images, target), reduce_op="mean"))
    if not math.isfinite(kl):
        raise NonFiniteError(
            f"received a student whose KL to the teacher is {kl:g} on the first batch; expected a finite one; look for "
            "broken images or weights, or set --model.optimization.lr to a number"
        )
    rate = PER_ROOT_KL * math.sqrt(max(0.0, kl))  # below 0 by rounding
    rank_zero_info(f"the student starts {kl:.3g} nats from its teacher: the learning rate is {rate:.2g}")
    if rate == 0:
        rank_zero_warn("the student answers as its teacher does: there is nothing to learn")
    return rate


def scale_rates(optimizer: torch.optim.Optimizer, schedule: LRScheduler, factor: float) -> None:
    """Multiply the rates of an optimiser, now and at each step of its schedule, in place."""
    for group in optimizer.param_groups:
        group["lr"] *= factor
        group["initial_lr"] *= factor
    schedule.base_lrs = [rate * factor for rate in schedule.base_lrs]
