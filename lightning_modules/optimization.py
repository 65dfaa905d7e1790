"""The optimisation that every system here shares."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from timm.optim import create_optimizer_v2, list_optimizers  # type: ignore[attr-defined]  # re-exported without __all__
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from hypercompress.errors import HypercompressError, one_line

REFUSED = {  # optimisers of timm's, and why
    "adahessian": "needs a second derivative that no step here takes",  # a backward pass made with create_graph
    **dict.fromkeys(("kron", "kronc", "kronw"), "compiles itself for minutes before its first step"),
}
Schedule = Literal["cosine", "constant"]


class SettingError(HypercompressError, ValueError):
    """A setting of a system outside its range."""


@dataclass(frozen=True)
class Optimization:
    """Optimiser and schedule.

    Args:
        optimizer: a name of timm's optimisers, but not of `REFUSED`; ``sgd`` is with Nesterov momentum.
        lr: the highest learning rate; ``auto``: by the first steps of a distillation (`rates`).
        weight_decay: not applied to biases and norms.
        momentum: of optimisers that have one.
        schedule: ``cosine``: a straight rise, then half a cosine down to 0 at the last step. ``constant``: no descent.
        warmup: share of the steps that rise, in [0, 1).

    Raises:
        SettingError: an unknown name, or a number outside its range.
    """

    optimizer: str = "sgd"
    lr: float | Literal["auto"] = 0.1
    weight_decay: float = 5e-4
    momentum: float = 0.9
    schedule: Schedule = "cosine"
    warmup: float = 0.25

    def __post_init__(self) -> None:
        name = self.optimizer.lower().removeprefix("lookahead_")
        if name not in list_optimizers() or name in REFUSED:
            why = f", which {REFUSED[name]}" if name in REFUSED else ""
            raise SettingError(
                f"received optimizer {self.optimizer!r}{why}; expected a name of timm's optimisers, such as adamw "
                "or sgd; change it"
            )
        if self.schedule not in get_args(Schedule):
            raise SettingError(
                f"received schedule {self.schedule!r}; expected one of {', '.join(get_args(Schedule))}; change it"
            )
        rate = self.lr == "auto" or self.lr > 0
        if not (rate and self.weight_decay >= 0 and 0 <= self.momentum < 1 and 0 <= self.warmup < 1):
            raise SettingError(
                f"received lr {self.lr}, weight_decay {self.weight_decay:g}, momentum {self.momentum:g}, warmup "
                f"{self.warmup:g}; expected lr above 0, weight_decay 0 or more, warmup and momentum in [0, 1); change "
                "them"
            )

    def configure(self, modules: Iterable[nn.Module], steps: int | float) -> OptimizerLRSchedulerConfig:
        """What ``configure_optimizers`` returns, for a run of so many optimiser steps.

        Raises:
            SettingError: the rate is ``auto``, the steps have no end that the schedule could be laid out to, or the
                optimiser cannot be had here.
        """
        if math.isinf(steps) and (self.schedule == "cosine" or self.warmup > 0):
            raise SettingError(
                f"received a run without a number of steps for the schedule {self.schedule} with warmup "
                f"{self.warmup:g}; expected one; set --trainer.max_steps or --trainer.max_epochs, or "
                "--model.optimization.schedule constant with --model.optimization.warmup 0"
            )
        if self.lr == "auto":
            raise SettingError(
                "received lr auto; expected a number, as only the distillation from a teacher can choose; set "
                "--model.optimization.lr"
            )
        listed = list(modules)
        whole = listed[0] if len(listed) == 1 else nn.ModuleList(listed)  # one names itself what it keeps from decay
        optimizer = self._created(whole, self.lr)
        schedule = LambdaLR(optimizer, self.factor(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _created(self, model: nn.Module, lr: float) -> Optimizer:
        try:
            return create_optimizer_v2(
                model, opt=self.optimizer, lr=lr, weight_decay=self.weight_decay, momentum=self.momentum
            )
        except Exception as error:  # some need a card, some a package, and each says so in its own way
            raise SettingError(
                f"received optimizer {self.optimizer!r}, which cannot be had here ({type(error).__name__}: "
                f"{one_line(error)}); expected one that can; choose another, such as adamw or sgd"
            ) from error

    def factor(self, steps: int | float) -> Callable[[int], float]:
        """The learning rate at each step as a share of the highest.

        A plain function is not in the checkpoint, so a resumed run may be longer than planned.
        """
        rise = self.warmup * steps if self.warmup else 0.0

        def factor(step: int) -> float:
            if step < rise:
                return (step + 1) / (rise + 1)
            if self.schedule == "constant":
                return 1.0
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rise) / max(1.0, steps - rise))))

        return factor
