"""A teacher: a timm model trained with labels.

Shape letters: ``b`` images in a batch; ``k`` classes; ``c h w`` channels, height and width of one image.
"""

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torchmetrics import MeanMetric

from hypercompress.architecture import load_timm
from hypercompress.architecture.record import with_preparation
from hypercompress.running.calling import precision
from hypercompress.student import Student
from lightning_modules.data import images_of
from lightning_modules.matching import probed
from lightning_modules.norms import several_images
from lightning_modules.optimization import Optimization, SettingError
from lightning_modules.resuming import Resumable
from lightning_modules.systems import (
    Batch,
    in_precision,
    logged_as,
    require_finite_loss,
    require_labels,
    require_room,
    reset,
)


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
        require_finite_loss(loss, self)
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
