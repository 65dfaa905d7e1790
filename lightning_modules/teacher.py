"""A teacher: a timm model trained with labels.

Shape letters: ``b`` images in a batch; ``k`` classes; ``c h w`` channels, height and width of one image.
"""

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric

from hypercompress.architecture import load_timm
from hypercompress.architecture.images import with_preparation
from hypercompress.errors import DataError, NonFiniteError
from hypercompress.running.calling import precision
from hypercompress.student import Student
from lightning_modules.data import images_of
from lightning_modules.matching import probed
from lightning_modules.norms import several_images
from lightning_modules.optimization import Optimization, SettingError
from lightning_modules.resuming import Resumable

Batch = tuple[Float[Tensor, "b c h w"], Int64[Tensor, " b"]]


class Teacher(Resumable):
    """Trains a timm classifier. `SaveStudent` writes it as a student folder, so every command takes it as MODEL.

    Args:
        name: timm name.
        model_args: arguments of ``timm.create_model``.
        pretrained_cfg: ``input_size``, ``mean``, ``std`` ... : how images are prepared; travels with the model.
        pretrained: start from timm's weights.
        checkpoint: start from these weights.
        optimization: optimiser and schedule.
        label_smoothing: in [0, 1).

    Shape: images [b, c, h, w] to logits [b, k].

    Raises:
        ModelError: an unknown name, arguments or weights that do not fit, or (at ``setup``) images that it does not
            take.
        SettingError: a label smoothing outside its range.
        NonFiniteError: the loss became NaN or infinite.
    """

    def __init__(
        self,
        name: str,
        model_args: dict[str, Any] | None = None,
        pretrained_cfg: dict[str, Any] | None = None,
        pretrained: bool = False,
        checkpoint: Path | None = None,
        optimization: Optimization | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise SettingError(f"received label_smoothing {label_smoothing:g}; expected a share in [0, 1); change it")
        self.network, self.architecture = load_timm(
            name, checkpoint=checkpoint, model_args=model_args, pretrained=pretrained, pretrained_cfg=pretrained_cfg
        )
        self._saved_as = precision(self.network)
        self.optimization = optimization or Optimization()
        self.label_smoothing = label_smoothing
        start = Path(checkpoint).name if checkpoint is not None else f"pretrained {pretrained}"
        self.start = {"start": start, "label_smoothing": f"{label_smoothing:g}"}
        self.val_loss, self.val_top1 = MeanMetric(), MeanMetric()

    def setup(self, stage: str) -> None:
        """Raises DataError if the images have more classes than the network, ModelError if it does not take them, and
        SettingError of a precision that no step survives.
        """
        require_room(self, stage)
        data = images_of(self)
        if data is not None:
            probed(self.network, (), data.preprocess().input_size, "teacher")
            data.number_by((), int(self.network.num_classes), followed=True, fewer=True)  # type: ignore[arg-type]

    def student(self) -> Student:
        """The network as trained so far, as something to save.

        It knows how the images of this run are prepared, and what its outputs are called if each has been seen.
        """
        data, network = images_of(self), in_precision(self.network, self._saved_as)
        if data is None:
            return Student(network, self.architecture)
        names = list(data.trained_classes())
        report = {"classes": names} if len(names) == self.network.num_classes else {}
        return Student(*with_preparation(network, self.architecture, data.preprocess()), report)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        logits: Tensor = self.network(images)
        return logits

    def on_fit_start(self) -> None:
        """Lightning trains modules in the mode it finds them in; a loaded model is in evaluation mode."""
        self.network.train()

    def on_validation_start(self) -> None:
        reset((self.val_loss, self.val_top1))

    def on_test_start(self) -> None:
        self.on_validation_start()

    def training_step(self, batch: Batch) -> Tensor:
        images, labels = batch
        require_labels(labels)
        with several_images():
            logits = self(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        require_finite(loss, self)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch) -> None:
        images, labels = batch
        if bool((labels < 0).any()):  # as the data module has said, nothing can be measured on them
            return
        logits = self(images).float()
        self.val_loss.update(F.cross_entropy(logits, labels, reduction="none"))
        self.val_top1.update((logits.argmax(-1) == labels).float())
        part = logged_as(self)
        self.log_dict({f"{part}/loss": self.val_loss, f"{part}/top1": self.val_top1}, prog_bar=True)

    def test_step(self, batch: Batch) -> None:
        self.validation_step(batch)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return self.optimization.configure([self.network], self.trainer.estimated_stepping_batches)


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


def require_finite(loss: Float[Tensor, ""], system: LightningModule) -> None:
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
