"""Callbacks: the trained network leaves the run as a student folder, and a run that is stopped can go on."""

import math
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from hypercompress.saved.artefact import refuse_existing
from hypercompress.student import Student
from lightning_modules.internals import counts_versions, handler_before, layer_sync, stop
from lightning_modules.syncing import SyncedNorms
from lightning_modules.teacher import keeps


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
        savings = _savings(trainer)
        for path in (*map(_name, savings), *[_stopped(saving) for saving in savings[:1]]):
            if trainer.is_global_zero and path is not None and path.is_file() and trainer.ckpt_path is None:
                kept = path.replace(path.with_name(f"{path.name}.old"))
                rank_zero_info(f"{path} of an earlier run is kept as {kept.name}: --run FOLDER keeps runs apart")


def _savings(trainer: Trainer) -> list[ModelCheckpoint]:
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]


def _name(saving: ModelCheckpoint) -> Path | None:
    """The one checkpoint that a callback writes again and again, if that is what it does."""
    if counts_versions(saving) or saving.dirpath is None:
        return None
    known = saving.filename is not None and "{" not in saving.filename
    return Path(saving.format_checkpoint_name({})) if known else None


def _latest(trainer: Trainer) -> Path | None:
    """The newest checkpoint of a run that has taken a step."""
    found: set[Path] = set()
    for saving in _savings(trainer) if trainer.global_step else ():
        found |= {Path(_name(saving) or ""), Path(saving.best_model_path), Path(saving.last_model_path)}
    return max((path for path in found if path.is_file()), key=lambda path: path.stat().st_mtime, default=None)


def _stopped(saving: ModelCheckpoint) -> Path:
    """A checkpoint of the latest step in the folder of a callback that keeps the best ones alone."""
    return Path(saving.dirpath or "") / f"stopped{saving.FILE_EXTENSION}"


def _last(saving: ModelCheckpoint) -> Path:
    """What Lightning finds of a callback by the name of ``last``."""
    return Path(saving.last_model_path or Path(saving.dirpath or "") / f"last{saving.FILE_EXTENSION}")


def _of_this_step(trainer: Trainer) -> Path | None:
    """Where a run that is stopped leaves a checkpoint: as the first callback that saves the latest step would name it,
    ``last`` where one keeps that beside the best, and never in the place of one that was chosen by its score; ``None``
    of a run that keeps none.
    """
    savings = _savings(trainer)
    chosen = {
        Path(path) for saving in savings if saving.monitor for path in (saving.best_model_path, *saving.best_k_models)
    }
    chosen |= {path for saving in savings if saving.monitor and (path := _name(saving)) is not None}
    step, epoch = (torch.tensor(number) for number in (trainer.global_step, trainer.current_epoch))
    metrics = {**trainer.callback_metrics, "step": step, "epoch": epoch}
    named = [Path(saving.format_checkpoint_name(metrics)) for saving in savings if not saving.monitor]
    last = [_last(saving) for saving in savings if saving.monitor and saving.save_last is True]
    return next((path for path in (*named, *last, *map(_stopped, savings)) if path not in chosen), None)


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


class SaveWhenStopped(Callback):
    """On SIGTERM, as a scheduler sends it before it takes a machine away, and on Ctrl-C: a checkpoint of the step that
    was just done. Ctrl-C once more stops at once.

    All ranks stop after the same step, with no gradient accumulated; a validation is stopped between two batches if
    there is one process, else it ends first. The checkpoint goes where the run's `ModelCheckpoint` keeps the latest
    step; of a run that keeps only those with the best scores, beside them as ``stopped.ckpt``.
    During the validation of an average of the weights that average is in the place of the weights: then the latest
    checkpoint has to do.

    Attributes:
        stopped_by: the signal, once there was one.
        latest: of a run that an error ended, its latest checkpoint.
    """

    def __init__(self) -> None:
        self.stopped_by: signal.Signals | None = None
        self.latest: Path | None = None
        self._step = 0  # the last one that ended

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002  (Lightning's)
        """Take the signals over from Lightning, which puts back in the end what was there before it.

        Its own handler broadcasts from within, and stops between the batches of one step. A scheduler that signals all
        processes of a group then leaves them waiting for one another.
        """
        self.stopped_by, self._step = None, trainer.global_step
        before = handler_before(trainer, signal.SIGTERM)

        def note(number: int, frame: FrameType | None) -> None:
            launcher = trainer.strategy.launcher
            if launcher is not None and self.stopped_by is None:
                launcher.kill(signal.SIGTERM)  # the processes that this one has started; Ctrl-C may reach them, too
            self.stopped_by = self.stopped_by or signal.Signals(number)
            if number == signal.SIGINT:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                if trainer.is_global_zero:  # by no stream: it may be in the middle of a line
                    os.write(2, b"\nstopping after this step; Ctrl-C once more stops at once\n")
            elif callable(before):
                before(number, frame)

        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, note)
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # ignored in the background of a shell
                signal.signal(signal.SIGINT, note)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # noqa: ARG002
        if trainer.global_step == self._step:  # gradients are being accumulated
            return
        self._step = trainer.global_step
        if trainer.strategy.reduce_boolean_decision(self.stopped_by is not None, all=False):
            stop(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # noqa: ARG002
        if self.stopped_by is not None and trainer.world_size == 1:
            stop(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002
        self.latest = _latest(trainer)
        path = _of_this_step(trainer) if isinstance(exception, SIGTERMException) and keeps(trainer) else None
        if path is None:
            return
        what = (self.stopped_by or signal.SIGTERM).name
        if trainer.validating and averages(trainer):
            how = "there is none yet" if self.latest is None else f"--ckpt_path {self.latest}"
            rank_zero_warn(
                f"stopped by {what} while an average was validated: go on from the latest checkpoint ({how})"
            )
            return
        trainer.save_checkpoint(path)
        how = f"go on with the same command and --ckpt_path {path}"
        rank_zero_warn(f"stopped by {what} after step {trainer.global_step}: {how}")


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
