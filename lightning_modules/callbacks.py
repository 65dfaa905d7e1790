"""Callbacks: the trained network leaves the run as a student folder, and what the run says meanwhile."""

import math
import sys
import time
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from hypercompress.saved.artefact import refuse_existing
from hypercompress.student import Student
from lightning_modules.internals import counts_versions, layer_sync
from lightning_modules.syncing import SyncedNorms
from lightning_modules.systems import keeps


@runtime_checkable
class HasStudent(Protocol):
    """A system that trains something to save."""

    def student(self) -> Student: ...


class SaveStudent(Callback):
    """At the end of a fit, rank zero writes the student folder; before the first step a folder in the way is refused.

    A fit that goes on from the checkpoint of its last step writes what that run was to leave. One that has no batches
    and a trial run (``fast_dev_run``) leave what is there.

    Buffers are taken from rank zero (BatchNorm moments differ between ranks by their last batch); parameters must be
    equal on all ranks.

    Args:
        folder: where to.
        overwrite: replace a student folder that is there, as a second run of the same config does.

    Raises:
        ArtefactError: before training: the folder is in the way; after: it cannot be written.
        RuntimeError: the ranks end with different weights, which is an error in this program.
    """

    def __init__(self, folder: Path, overwrite: bool = True) -> None:
        self.folder, self.overwrite = Path(folder), overwrite
        self._trained = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not isinstance(pl_module, HasStudent):
            raise TypeError(
                f"received SaveStudent with {type(pl_module).__name__}, which trains no student; expected a system "
                "with a student() method; remove the callback"
            )
        if trainer.is_global_zero:
            refuse_existing(self.folder, self.overwrite)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002  (Lightning's)
        self._trained = False

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002  (Lightning's)
        """Lightning calls it only if there was something to train."""
        self._trained = True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if keeps(trainer) and not self._trained and trainer.global_step > 0 and trainer.limit_train_batches != 0:
            self._trained = _ended(trainer, pl_module)
        if not keeps(trainer) or not self._trained:
            rank_zero_warn(f"no student folder is written to {self.folder}: no step was taken, or none that counts")
            return
        assert isinstance(pl_module, HasStudent)  # by setup
        check_ranks(trainer, pl_module)
        syncing = layer_sync(trainer)
        if isinstance(syncing, SyncedNorms):
            syncing.revert(pl_module)  # as Lightning would, but later
        student = pl_module.student()
        if trainer.is_global_zero:
            student.save_pretrained(self.folder, overwrite=self.overwrite)
            rank_zero_info(f"student folder: {self.folder}")


def _ended(trainer: Trainer, pl_module: LightningModule) -> bool:
    """Do what Lightning leaves out where no step is left: put the average in place and measure. Whether it can."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    if any(isinstance(callback, StochasticWeightAveraging) for callback in callbacks):
        return False  # its average takes one epoch more, for the moments of BatchNorms
    for average in averages(trainer):
        average.on_train_end(trainer, pl_module)
    pl_module.on_train_end()
    return True


def averages(trainer: Trainer) -> list[WeightAveraging]:
    """Those that take the place of the weights in a validation, and for good at the end of a fit."""
    return [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]


class TellReplaced(Callback):
    """What of an earlier run the one that begins may replace: student and network.

    A checkpoint is put aside: a run that is stopped before its own first one would else be taken up from there.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step or not keeps(trainer):  # one that goes on is meant to
            return
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        students = [callback.folder for callback in callbacks if isinstance(callback, SaveStudent)]
        for path in (*students, getattr(pl_module, "out", None)):
            if path is not None and path.exists():
                rank_zero_info(f"{path} of an earlier run may be replaced: --run FOLDER keeps runs apart")
        found = savings(trainer)
        for path in (*map(name_of, found), *[stopped(saving) for saving in found[:1]]):
            if trainer.is_global_zero and path is not None and path.is_file() and trainer.ckpt_path is None:
                kept = path.replace(path.with_name(f"{path.name}.old"))
                rank_zero_info(f"{path} of an earlier run is kept as {kept.name}: --run FOLDER keeps runs apart")


def savings(trainer: Trainer) -> list[ModelCheckpoint]:
    """What writes checkpoints of the run."""
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]


def name_of(saving: ModelCheckpoint) -> Path | None:
    """The one checkpoint that a callback writes again and again, if that is what it does."""
    if counts_versions(saving) or saving.dirpath is None:
        return None
    known = saving.filename is not None and "{" not in saving.filename
    return Path(saving.format_checkpoint_name({})) if known else None


def stopped(saving: ModelCheckpoint) -> Path:
    """A checkpoint of the latest step in the folder of a callback that keeps the best ones alone."""
    return Path(saving.dirpath or "") / f"stopped{saving.FILE_EXTENSION}"


class StepLines(Callback):
    """Where no terminal shows a bar: how many steps are done, every so many seconds.

    Args:
        seconds: between two lines.
    """

    def __init__(self, seconds: float = 30.0) -> None:
        self.seconds = seconds
        self._last = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002  (Lightning's)
        self._last = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # noqa: ARG002
        now = time.monotonic()
        seen = sys.stdout.isatty() and trainer.progress_bar_callback is not None
        if seen or now - self._last < self.seconds:
            return
        self._last, steps = now, trainer.estimated_stepping_batches
        of = f" of {int(steps)}" if math.isfinite(steps) and steps >= 0 else ""
        rank_zero_info(f"step {trainer.global_step}{of}")


def check_ranks(trainer: Trainer, pl_module: LightningModule) -> None:
    """Raises RuntimeError if the ranks hold different parameters; says so in the log if they do not."""
    if trainer.world_size == 1:
        return
    sums = pl_module.all_gather(checksum(pl_module))
    assert isinstance(sums, torch.Tensor)  # as one tensor went in
    if not torch.equal(sums, sums[:1].expand_as(sums)):
        raise RuntimeError(
            f"received different weights on {trainer.world_size} ranks (checksums {sums.tolist()}); expected equal "
            "ones; please report this"
        )
    rank_zero_info(f"equal weights on {trainer.world_size} ranks: checksum {float(sums[0]):.17g}")


def checksum(model: nn.Module) -> torch.Tensor:
    """A number that any change of any parameter is likely to change: a sum with weights that depend on the place."""
    total = torch.zeros((), dtype=torch.float64)
    for place, parameter in enumerate(model.parameters(), 1):
        values = parameter.detach().double().cpu().flatten()
        total += place * (values * torch.linspace(1, 2, len(values), dtype=torch.float64)).sum()
    return total
