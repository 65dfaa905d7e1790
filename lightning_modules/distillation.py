"""Distillation of a student folder against its teacher, with or without labels.

Shape letters: ``b`` images in a batch; ``k`` classes; ``c h w`` channels, height and width of one image.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torchmetrics import MeanMetric

from hypercompress.errors import ModelError
from hypercompress.losses import distillation_kl, feature_loss, watching
from hypercompress.models import load_model
from hypercompress.student import Student, from_pretrained
from lightning_modules.teacher import Batch, Optimization, require_finite, require_labels


@dataclass(frozen=True)
class TeacherSource:
    """The teacher, in any form of MODEL.

    Args:
        model: a timm name or a student folder.
        checkpoint: weights of a timm model.
        model_args: arguments of ``timm.create_model``.
        pretrained: load hub weights if there is no checkpoint.
    """

    model: str
    checkpoint: Path | None = None
    model_args: dict[str, Any] | None = None
    pretrained: bool = True

    def load(self) -> nn.Module:
        """The network, frozen, in evaluation mode."""
        network, _ = load_model(
            self.model, checkpoint=self.checkpoint, model_args=self.model_args, pretrained=self.pretrained
        )
        return network.eval().requires_grad_(False)


@dataclass(frozen=True)
class Losses:
    """Weights of the terms; a term of weight 0 is not computed.

    Args:
        logits: of the KL to the teacher's softened predictions.
        temperature: of both predictions in it.
        features: of the un-pooled feature error, on the maps that timm names in ``feature_info``.
        labels: of the cross-entropy with the labels.
    """

    logits: float = 1.0
    temperature: float = 1.0
    features: float = 0.1
    labels: float = 0.0

    def __post_init__(self) -> None:
        weights = (self.logits, self.features, self.labels)
        if min(weights) < 0 or max(weights) == 0 or self.temperature <= 0:
            raise ValueError(
                f"received logits {self.logits:g}, features {self.features:g}, labels {self.labels:g}, temperature "
                f"{self.temperature:g}; expected weights of 0 or more, one above 0, and a temperature above 0; change them"
            )


class Distillation(LightningModule):
    """Trains a student folder; `SaveStudent` writes the result. The teacher is no part of the system: it is in no
    checkpoint, no optimiser and no DDP wrapper.

    Args:
        student: folder to start from.
        teacher: what to follow; may be left out if only the labels count.
        losses: weights of the terms.
        optimization: optimiser and schedule.

    Raises:
        ArtefactError, ModelError: the student or the teacher cannot be loaded, or they do not match.
        NonFiniteError: the loss became NaN or infinite.
    """

    def __init__(
        self,
        student: Path,
        teacher: TeacherSource | None = None,
        losses: Losses | None = None,
        optimization: Optimization | None = None,
    ) -> None:
        super().__init__()
        source = from_pretrained(student)
        self.network, self.architecture, self.report = source.model, source.architecture, source.report
        self.losses = losses or Losses()
        self.optimization = optimization or Optimization("adamw", 1e-3, 0.0, warmup=0.1)
        if teacher is None and (self.losses.logits > 0 or self.losses.features > 0):
            raise ModelError(
                "received no teacher with a weight on its logits or features; expected one to follow; name it, or set "
                "both weights to 0 and that of the labels above"
            )
        # In a list, so that it is no sub-module.
        self._teacher = [] if teacher is None else [teacher.load()]
        self.watched = self._common_features() if self.losses.features > 0 else ()
        self.metrics = nn.ModuleDict({name: MeanMetric() for name in ("kl", "agreement", "top1_teacher", "top1_student")})
        self.fidelity: dict[str, float | int | None] | None = None

    @property
    def teacher(self) -> nn.Module | None:
        """The teacher, on whatever device it was moved to."""
        return self._teacher[0] if self._teacher else None

    def _common_features(self) -> tuple[str, ...]:
        info = getattr(self.network, "feature_info", None) or []
        names = [item["module"] for item in info if isinstance(item, dict) and item.get("module")]
        theirs = {name for name, _ in self._teacher[0].named_modules()}
        ours = {name for name, _ in self.network.named_modules()}
        found = tuple(name for name in names if name in ours and name in theirs)
        rank_zero_info(f"feature loss on: {', '.join(found) if found else 'nothing (the model names no feature maps)'}")
        return found

    def student(self) -> Student:
        """The network as trained so far, with what the last validation measured (null if it trained on since)."""
        report = dict(self.report)
        if report:
            keys = ("agreement", "kl", "top1_teacher", "top1_student", "images")
            report["fidelity"] = self.fidelity or dict.fromkeys(keys)
            report["distilled_steps"] = int(report.get("distilled_steps", 0)) + self.global_step
        return Student(self.network, self.architecture, report)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        logits: Tensor = self.network(images)
        return logits

    def on_fit_start(self) -> None:
        """A loaded student is in evaluation mode; the teacher stays in it."""
        self.network.train()

    def setup(self, stage: str) -> None:
        for teacher in self._teacher:
            teacher.to(self.trainer.strategy.root_device)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, labels = batch
        self.fidelity = None
        terms: dict[str, Tensor] = {}
        with watching(self.network, self.watched) as ours:
            logits = self(images)
        if self.teacher is not None:
            with torch.no_grad(), watching(self.teacher, self.watched) as theirs:
                target = self.teacher(images)
            if self.losses.logits > 0:
                terms["kl"] = self.losses.logits * distillation_kl(logits, target, self.losses.temperature)
            if self.watched:
                terms["features"] = self.losses.features * feature_loss(ours, theirs)
        if self.losses.labels > 0:
            require_labels(labels)
            terms["labels"] = self.losses.labels * F.cross_entropy(logits, labels)
        loss = torch.stack(list(terms.values())).sum()
        require_finite(loss, self.global_step)
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict({f"train/{name}": term for name, term in terms.items()})
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        images, labels = batch
        logits = self(images).float()
        if self.teacher is not None:
            target = self.teacher(images).float()
            log_p, log_q = F.log_softmax(target, -1), F.log_softmax(logits, -1)
            self.metrics["kl"].update((log_p.exp() * (log_p - log_q)).sum(-1))
            self.metrics["agreement"].update((logits.argmax(-1) == target.argmax(-1)).float())
        if bool((labels >= 0).all()):
            self.metrics["top1_student"].update((logits.argmax(-1) == labels).float())
            if self.teacher is not None:
                self.metrics["top1_teacher"].update((target.argmax(-1) == labels).float())
        for name, metric in self.metrics.items():
            if metric.update_count:
                self.log(f"val/{name}", metric, prog_bar=name != "top1_teacher")

    def on_validation_epoch_end(self) -> None:
        """Keep what was measured for the report."""
        values = {name: float(metric.compute()) if metric.update_count else None for name, metric in self.metrics.items()}
        counted = next((m for m in self.metrics.values() if m.update_count), None)
        if counted is not None:
            self.fidelity = {**values, "images": int(counted.weight)}

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return self.optimization.configure([self.network], int(self.trainer.estimated_stepping_batches))
