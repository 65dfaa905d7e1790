"""Distillation of a student folder against its teacher, with or without labels.

Shape letters: ``b`` images in a batch; ``k`` classes; ``c h w`` channels, height and width of one image.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torchmetrics import MeanMetric

from hypercompress.architecture.record import with_preparation
from hypercompress.data import Preprocess
from hypercompress.errors import ModelError
from hypercompress.fidelity import kl_of
from hypercompress.losses import distillation_kl, feature_loss, watching
from hypercompress.models import require_buildable
from hypercompress.outdated import trained_on
from hypercompress.report import class_names, fidelity_json
from hypercompress.running.calling import keeping_random_state, precision, single_
from hypercompress.running.norms import remembering_norms
from hypercompress.running.outputs import agreeing, named
from hypercompress.student import Student, from_pretrained
from lightning_modules.beginning import Beginning, Mixing, Norms
from lightning_modules.data import images_of
from lightning_modules.dropping import dropping_nothing
from lightning_modules.held_out import described, measured, tell, validated
from lightning_modules.losses import Losses
from lightning_modules.matching import in_common, matched, probed
from lightning_modules.mixing import mixed
from lightning_modules.norms import refilling, several_images
from lightning_modules.optimization import Optimization
from lightning_modules.resuming import Resumable, hash_of
from lightning_modules.source import Outside, TeacherSource
from lightning_modules.systems import (
    Batch,
    in_precision,
    logged_as,
    require_finite_loss,
    require_labels,
    require_room,
    reset,
)


class Distillation(Resumable):
    """Trains a student folder; `SaveStudent` writes the result. The teacher is no part of the system: it is in no
    checkpoint, no optimiser and no DDP wrapper.

    Args:
        student: folder to start from.
        teacher: what to follow; may be left out if only the labels count.
        losses: weights of the terms.
        optimization: optimiser and schedule; a rate of ``auto`` is chosen by the first images (`rates.rate_for`).
        norms: BatchNorms normalise by the batch (``training``) or keep their running moments (``frozen``); ``auto``:
            the first batch decides (`norms.freeze_if_better`), and with a weight on labels they train.
        mixing: whether images of a step are pasted into each other (`mixing.mixed`), and norms keep their moments;
            ``auto``: if no more than `beginning.FEW` are trained on, no label counts, and the student is near.

    Raises:
        ArtefactError, ModelError: the student or the teacher cannot be loaded, or (at ``setup``) they do not match.
        SettingError: at ``setup`` to fit: a rate of ``auto`` with labels or with another optimiser than AdamW, or
            mixing with labels or with norms in training mode.
        NonFiniteError: the loss became NaN or infinite.
    """

    def __init__(
        self,
        student: Path,
        teacher: TeacherSource | None = None,
        losses: Losses | None = None,
        optimization: Optimization | None = None,
        norms: Norms = "auto",
        mixing: Mixing = "auto",
    ) -> None:
        super().__init__()
        require_buildable(student)
        source = from_pretrained(student)
        self.network, self.architecture, self.report = source.model, source.architecture, source.report
        self._saved_as = single_(self.network)
        self.losses = losses or Losses()
        self.losses.require_classes(self.report)
        if teacher is None and (self.losses.logits > 0 or self.losses.features > 0):
            raise ModelError(
                "received no teacher with a weight on its logits or features; expected one to follow; name it, or set "
                "both weights to 0 and that of the labels above"
            )
        self.followed = teacher is not None and self.losses.labels == 0  # and nothing but the teacher
        self.optimization = optimization or Optimization("adamw", "auto" if self.followed else 5e-4, 0.0, warmup=0.1)
        self.beginning = Beginning(self.optimization, norms, mixing, followed=self.followed)
        self._outside = None if teacher is None else Outside(teacher.load())
        self.start = {"student": hash_of(self.network), "teacher": hash_of(self.teacher), "losses": str(self.losses)}
        self.start |= {"norms": norms, "mixing": str(mixing)}
        self._source = teacher
        self._own_images: RemovableHandle | None = None
        self.watched: tuple[str, ...] = ()  # setup leaves the comparable ones
        if self.teacher is not None and self.losses.features > 0:
            self.watched = in_common(self.network, self.teacher)
            self.losses.require_maps(self.watched, "whose feature_info names no module that the teacher has too")
        names = ("kl", "agreement", "top1_teacher", "top1_student")
        self.metrics = nn.ModuleDict({name: MeanMetric() for name in names})
        self.fidelity: dict[str, Any] = fidelity_json(None)
        self.measured_on: str | None = None
        self.before: dict[str, Any] | None = None  # the fidelity ahead of the first step

    @property
    def teacher(self) -> nn.Module | None:
        """The teacher, on whatever device it was moved to."""
        return None if self._outside is None else self._outside.module

    def setup(self, stage: str) -> None:
        """It is known how the images are prepared: give the teacher its own normalisation where that differs, keep the
        feature maps that can be compared, and say which cannot.

        Raises:
            DataError: ``mean`` or ``std`` of the teacher do not fit, or labels to follow are no classes of the student.
            ModelError: student and teacher differ in the shape of their logits, or one does not take the images; a
                weight on features alone, and no two maps that are alike. SettingError: such a weight in several
                processes.
        """
        require_room(self, stage)
        if stage == "fit":  # what a checkpoint says comes after it
            self.beginning.ask()
        self.losses.require_all_weights(self.trainer.world_size)
        given = self._preprocess()
        size = given.input_size
        if self.teacher is None or self._source is None:
            self._number_labels(probed(self.network, (), size, "student").logits)
            return
        if self._own_images is not None:  # of an earlier run with other images
            self._own_images.remove()
        self._own_images = self._source.renormalize_(self.teacher, given)
        logits, self.watched = matched(self.network, self.teacher, self.watched, size, self.losses)
        self._number_labels(logits)

    def _number_labels(self, logits: tuple[int, ...]) -> None:
        data = images_of(self)
        if data is not None and len(logits) == 2:
            data.number_by(class_names(self.report), logits[1], followed=self.losses.labels > 0)

    def _preprocess(self) -> Preprocess:
        """How the images of this run are prepared: as the data module says, else as the student does."""
        data = images_of(self)
        return Preprocess.of(self.network) if data is None else data.preprocess()

    def student(self) -> Student:
        """The network as trained so far, its images as in this run, with what was measured (null before the end)."""
        report = trained_on(self.report, self.global_step)
        if report:
            report["fidelity"], report["measured_on"] = self.fidelity, self.measured_on
        network = in_precision(self.network, self._saved_as)
        return Student(*with_preparation(network, self.architecture, self._preprocess()), report)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        logits: Tensor = self.network(images)
        return logits

    def on_fit_start(self) -> None:
        """A loaded student is in evaluation mode; the teacher stays in it."""
        self.network.train()
        self._move_teacher()

    def on_validation_start(self) -> None:
        self._move_teacher()
        reset(self.metrics.values())

    def on_test_start(self) -> None:
        self.on_validation_start()

    def on_train_start(self) -> None:
        """Measure what is there ahead of the first step, on the images that the result is measured on."""
        if validated(self) is not None and self.global_step == 0:
            with keeping_random_state(self.network):  # so that a resumed run draws the same
                self.before = measured(self, self.teacher, self.network)
        self.beginning.start(self, self.network)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint.update(before=self.before, **self.beginning.said())

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.before = checkpoint.get("before")
        self.beginning.go_on(checkpoint)

    def _move_teacher(self) -> None:
        if self.teacher is not None:
            self.teacher.to(self.device)

    @staticmethod
    def _answer(teacher: nn.Module, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b ..."]:
        """With weights of its own precision, which no plugin of the trainer's converts."""
        answer: Tensor = teacher(images.to(precision(teacher)))
        return answer

    @torch.no_grad()
    def _answer_exactly(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b ..."]:
        """As exact as the student's answer is there: rounding to half precision is no distance to go."""
        assert self.teacher is not None  # by the caller
        with torch.autocast(images.device.type, enabled=False):
            return self._answer(self.teacher, images)

    def training_step(self, batch: Batch) -> Tensor:
        images, labels = batch[0].to(precision(self.network)), batch[1]
        if not self.beginning.known:
            self.beginning.begin(self, self.network, images, self._answer_exactly)
        if self.beginning.mixed:
            images = mixed(images, self.beginning.random(self))
        terms: dict[str, Tensor] = {}
        kept = dropping_nothing(self.network, self.losses.labels == 0)
        with watching(self.network, self.watched) as ours, several_images(), kept:
            logits = self(images)
        if self.teacher is not None:
            with torch.no_grad(), watching(self.teacher, self.watched) as theirs:
                target = self._answer(self.teacher, images)
            if self.losses.logits > 0:
                terms["kl"] = self.losses.logits * distillation_kl(logits, target, self.losses.temperature)
            if self.watched:
                terms["features"] = self.losses.features * feature_loss(ours, theirs)
        if self.losses.labels > 0:
            require_labels(labels, ", or set the weight of the labels to 0")
            terms["labels"] = self.losses.labels * F.cross_entropy(logits, labels)
        loss = torch.stack(list(terms.values())).sum()
        require_finite_loss(loss, self)
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict({f"train/{name}": term for name, term in terms.items()})
        return loss

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Activations that are computed anew drop what they dropped in the step."""
        with dropping_nothing(self.network, self.losses.labels == 0):
            super().backward(loss, *args, **kwargs)

    def validation_step(self, batch: Batch) -> None:
        images, labels = batch[0].to(precision(self.network)), batch[1]
        logits = self(images).float()
        ours = named(logits)
        labelled = bool((labels >= 0).all()) and ours is not None and ours.shape[1] == 1
        if ours is not None and labelled:
            self._measure("top1_student", ours[:, 0] == labels)
        if self.teacher is not None:
            target = self._answer(self.teacher, images).float()
            self._measure("kl", kl_of(target, logits).flatten())
            theirs = named(target)
            if ours is not None and theirs is not None:
                self._measure("agreement", agreeing(theirs, ours).flatten())
                if labelled:
                    self._measure("top1_teacher", theirs[:, 0] == labels)

    def _measure(self, name: str, values: Shaped[Tensor, " b"]) -> None:
        metric = self.metrics[name]
        assert isinstance(metric, MeanMetric)  # by __init__
        metric.update(values.float())
        self.log(f"{logged_as(self)}/{name}", metric, prog_bar=name != "top1_teacher")

    def test_step(self, batch: Batch) -> None:
        self.validation_step(batch)

    def on_train_end(self) -> None:
        """Measure the very weights that are saved: a moving average has replaced the last ones by now.

        Each rank measures its share of the images, so they must agree on the buffers first (BatchNorm moments differ
        by a rank's last batch).
        """
        if self.trainer.world_size > 1:
            for buffer in self.network.buffers():
                torch.distributed.broadcast(buffer, src=0)
        data = validated(self)
        if data is not None:
            self.measured_on, self.fidelity = described(data), measured(self, self.teacher, self.network)
            told = f"lower --model.optimization.lr ({self.beginning.rate or 0:.2g}), or keep what generate gave"
            if self.beginning.mixed:
                told = f"try --model.mixing false, {told}"
            if not self.beginning.frozen and remembering_norms(self.network) and not refilling(self.trainer):
                told = f"try --model.norms frozen, {told}"
            tell(self.before, self.fidelity, self.measured_on, self.losses.labels > 0, told)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        known = self.optimization if self.optimization.lr != "auto" else replace(self.optimization, lr=1.0)
        return known.configure([self.network], self.trainer.estimated_stepping_batches)  # `beginning` scales
