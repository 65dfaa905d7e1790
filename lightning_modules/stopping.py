"""A run that is told to stop leaves a checkpoint of the step that was just done, and no other in its place."""

import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_modules.callbacks import averages, name_of, savings, stopped
from lightning_modules.internals import (
    break_off_validation,
    close_epoch,
    count_steps,
    finish_validation,
    forget_validation,
    handler_before,
    stop,
)
from lightning_modules.systems import keeps


class SaveWhenStopped(Callback):
    """On SIGTERM, as a scheduler sends it before it takes a machine away, and on Ctrl-C: a checkpoint of the step that
    was just done. Ctrl-C once more stops at once.

    All ranks stop after the same step, with no gradient accumulated. A validation is stopped between two batches if
    there is one process, else after its first batch; the run that goes on makes up for one that was stopped. The
    checkpoint goes where the run's `ModelCheckpoint` keeps the latest step; of a run that keeps only those with the
    best scores, beside them as ``stopped.ckpt``.
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
        self._whole = False  # whether that was just now: no gradient is accumulated

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:  # noqa: ARG002  (Lightning's)
        self._whole = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002  (Lightning's)
        """Take the signals over from Lightning, which puts back in the end what was there before it.

        Its own handler broadcasts from within, and stops between the batches of one step. A scheduler that signals all
        processes of a group then leaves them waiting for one another.
        """
        self.stopped_by, self._step = None, trainer.global_step
        self._whole = True  # a validation may come first, which the run made up for that was stopped in it
        forget_validation(trainer)
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

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # noqa: ARG002
        count_steps(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # noqa: ARG002
        self._whole, self._step = trainer.global_step != self._step, trainer.global_step
        if self._whole:
            self._stop_together(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """It may be long."""
        if self._whole:
            self._stop_together(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:  # noqa: ARG002
        if self._whole and self.stopped_by is not None and trainer.world_size == 1:
            stop(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """It may be the last."""
        self._stop_together(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002  (Lightning's)
        """A run that goes on from its last step trains nothing, and may have a validation left."""
        finish_validation(trainer)

    def _stop_together(self, trainer: Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(self.stopped_by is not None, all=False):
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
        if trainer.validating:
            break_off_validation(trainer)
        close_epoch(trainer)
        trainer.save_checkpoint(path)
        how = f"go on with the same command and --ckpt_path {path}"
        rank_zero_warn(f"stopped by {what} after step {trainer.global_step}: {how}")


def _latest(trainer: Trainer) -> Path | None:
    """The newest checkpoint of a run that has taken a step."""
    found: set[Path] = set()
    for saving in savings(trainer) if trainer.global_step else ():
        found |= {Path(name_of(saving) or ""), Path(saving.best_model_path), Path(saving.last_model_path)}
    return max((path for path in found if path.is_file()), key=lambda path: path.stat().st_mtime, default=None)


def _last(saving: ModelCheckpoint) -> Path:
    """What Lightning finds of a callback by the name of ``last``."""
    return Path(saving.last_model_path or Path(saving.dirpath or "") / f"last{saving.FILE_EXTENSION}")


def _of_this_step(trainer: Trainer) -> Path | None:
    """Where a run that is stopped leaves a checkpoint: as the first callback that saves the latest step would name it,
    ``last`` where one keeps that beside the best, and never in the place of one that was chosen by its score; ``None``
    of a run that keeps none.
    """
    found = savings(trainer)
    chosen = {
        Path(path) for saving in found if saving.monitor for path in (saving.best_model_path, *saving.best_k_models)
    }
    chosen |= {path for saving in found if saving.monitor and (path := name_of(saving)) is not None}
    step, epoch = (torch.tensor(number) for number in (trainer.global_step, trainer.current_epoch))
    metrics = {**trainer.callback_metrics, "step": step, "epoch": epoch}
    named = [Path(saving.format_checkpoint_name(metrics)) for saving in found if not saving.monitor]
    last = [_last(saving) for saving in found if saving.monitor and saving.save_last is True]
    return next((path for path in (*named, *last, *map(stopped, found)) if path not in chosen), None)
