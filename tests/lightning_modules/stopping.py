"""Two steps of a distillation that a signal may stop."""

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_modules.data import ImageDataModule
from lightning_modules.distillation import Distillation
from lightning_modules.source import TeacherSource
from lightning_modules.stopping import SaveWhenStopped

Folders = tuple[Path, Path]


def distilled(
    folders: Folders,
    trainer: Callable[..., Trainer],
    at: Path,
    *callbacks: Callback,
    every: int = 50,
    before: Sequence[ModelCheckpoint] = (),
    ckpt_path: Path | None = None,
    **options: Any,
) -> Distillation:
    """Two steps that SIGTERM may stop, with ``last.ckpt`` in the folder ``at`` every so many steps, or without if
    ``every`` is 0; all is new, as a new process has it.
    """
    saving = ModelCheckpoint(dirpath=at, filename="last", every_n_train_steps=every, enable_version_counter=False)
    settings = {"max_steps": 2, "limit_val_batches": 0, "enable_checkpointing": True, **options}
    system = Distillation(folders[1], TeacherSource(str(folders[0])))
    data = ImageDataModule("fashion_mnist_mini", limit=64, batch_size=16, val_limit=32, augment="flip")
    run = trainer(**settings, callbacks=[*before, *([saving] if every else []), *callbacks, SaveWhenStopped()])
    run.fit(system, data, ckpt_path=ckpt_path, weights_only=True)
    return system


class Stop(Callback):
    """A signal in a step, or in the validation after it, so many times."""

    def __init__(
        self, step: int, validating: bool = False, number: signal.Signals = signal.SIGTERM, times: int = 1
    ) -> None:
        self.step, self.validating, self.number, self.times = step, validating, number, times

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == self.step and not self.validating:
            for _time in range(self.times):
                os.kill(os.getpid(), self.number)

    def on_validation_batch_end(self, trainer: Trainer, *_: object) -> None:
        if trainer.global_step == self.step and self.validating:
            os.kill(os.getpid(), signal.SIGTERM)
