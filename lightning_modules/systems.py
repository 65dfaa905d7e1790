"""What the systems share: their batches, when they write, and what they refuse.

Shape letters: ``b`` images in a batch; ``c h w`` channels, height and width of one image.
"""

import copy
from collections.abc import Iterable

import torch
from jaxtyping import Float, Int64
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torchmetrics import MeanMetric

from hypercompress.errors import DataError, NonFiniteError
from hypercompress.running.calling import precision
from lightning_modules.optimization import SettingError

Batch = tuple[Float[Tensor, "b c h w"], Int64[Tensor, " b"]]


def keeps(trainer: Trainer) -> bool:
    """Whether what a system writes is to be written: in a fit, not in the check ahead of it, and not in a trial run."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking and not trainer.fast_dev_run  # type: ignore[attr-defined]


def logged_as(system: LightningModule) -> str:
    """What the metrics of held-out images are logged below."""
    return "test" if system.trainer.testing else "val"


def reset(metrics: Iterable[nn.Module]) -> None:
    """Start metrics anew.

    What ``trainer.validate`` leaves in them can only be changed in inference mode, and a fit's validation is not in it.
    """
    for metric in metrics:
        assert isinstance(metric, MeanMetric)  # by the callers' constructors
        metric.reset()


def device_of_run(system: LightningModule) -> torch.device:
    """Where the trainer will run the system; without a trainer, where it is.

    In ``setup`` a system still lies on the CPU: its trainer moves it afterwards.
    """
    if system._trainer is None:
        return torch.device(system.device)
    device: torch.device = system.trainer.strategy.root_device
    return device


def require_finite_loss(loss: Float[Tensor, ""], system: LightningModule) -> None:
    """Stop before a NaN reaches the weights.

    Raises:
        NonFiniteError: with the step, and with the precision where it leaves numbers little room.
    """
    if not bool(torch.isfinite(loss)):
        named = "" if system._trainer is None else str(system.trainer.precision)
        half = f"leave --trainer.precision {named}, whose largest number is 65504, " if "16-" in named else ""
        raise NonFiniteError(
            f"received a loss of {float(loss.detach()):g} at step {system.global_step}; expected a finite one; "
            f"{half}lower the learning rate, or look for broken images"
        )


def require_room(system: LightningModule, stage: str) -> None:
    """Raises SettingError if the trainer would cast weights that are to be trained below single precision."""
    named = "" if system._trainer is None else str(system.trainer.precision)
    if stage == "fit" and named.endswith("-true") and named.partition("-")[0] not in ("32", "64"):
        raise SettingError(
            f"received --trainer.precision {named}, in which steps are lost or overflow; expected one that keeps the "
            "weights in single precision; choose bf16-mixed or 32-true"
        )


def in_precision(network: nn.Module, wanted: torch.dtype) -> nn.Module:
    """The network in the precision that it came in, a copy if the trainer has cast it."""
    return network if precision(network) == wanted else copy.deepcopy(network).to(wanted)


def require_labels(labels: Int64[Tensor, " b"], otherwise: str = "") -> None:
    """Raises DataError if any label is the mark of an unlabelled set (-1).

    Args:
        otherwise: what else can be done about it than to give them labels.
    """
    if bool((labels < 0).any()):
        raise DataError(
            f"received images without labels; expected labels; sort the images into class sub-folders{otherwise}"
        )
