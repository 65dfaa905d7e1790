"""What both meta-trainings share: validation judges the network, and rank zero writes the best one so far."""

import math
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_modules.callbacks import averages
from lightning_modules.optimization import SettingError
from lightning_modules.resuming import Resumable
from lightning_modules.systems import keeps

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")  # in which weights, images and statistics are in single precision


class KeepsBest(Resumable):
    """A system whose validation gives a score, lower is better. It says how to `write` the network.

    Attributes:
        out: folder of the network that is written.
        best: the lowest score so far.
        curve: what each validation found; ``step`` among it.
    """

    part: ClassVar[str]  # of a checkpoint: where the best score and the curve are
    out: Path

    def __init__(self) -> None:
        super().__init__()
        self.best = math.inf
        self._read = 0  # the step of the checkpoint that was read
        self.curve: list[dict[str, float]] = []

    def setup(self, stage: str) -> None:  # noqa: ARG002  (Lightning passes it by name)
        """Raises SettingError if the trainer would cast the weights: tokens and images stay in single precision."""
        precision = PRECISIONS[0] if self._trainer is None else self.trainer.precision
        if precision not in PRECISIONS:
            raise SettingError(
                f"received --trainer.precision {precision}; expected one that keeps the weights in single precision; "
                f"choose {', '.join(PRECISIONS)}"
            )

    @property
    def step(self) -> int:
        """That of the network: outside a fit Lightning counts none, and the checkpoint says it."""
        return self.global_step or self._read

    def write(self) -> None:
        """Write the network as it is; called on rank zero."""
        raise NotImplementedError

    def validation_step(self, step: int) -> None:
        """Judge the network; with the gradients that the caller asks for."""
        raise NotImplementedError

    def judged(self, row: dict[str, float], score: float | None) -> None:
        """Log what a validation found, and in a fit write the network if it is the best; without a score the latest."""
        if self.trainer.validating or self.trainer.testing:  # elsewhere Lightning takes no such numbers
            self.log_dict({k: v for k, v in row.items() if k != "step"}, batch_size=1, sync_dist=True)
        rank_zero_info(", ".join(f"{key} {value:.4g}" for key, value in row.items()))
        if keeps(self.trainer):
            self.curve.append(row)
            if score is None or score < self.best:
                self.best = self.best if score is None else score
                self._write()

    def _write(self) -> None:
        if self.trainer.is_global_zero:
            self.write()

    def test_step(self, step: int) -> None:
        """As validation: what was held out of training is all that there is."""
        self.validation_step(step)

    def on_train_start(self) -> None:
        self._catch_up()

    def on_fit_end(self) -> None:
        """A fit that goes on from the checkpoint of its last step trains nothing, and nothing else would be called.

        So an average of the weights is put in their place, where that of a fit that trained is already. A run that
        validated nothing, and so has chosen nothing, keeps its last network.
        """
        for average in averages(self.trainer) if keeps(self.trainer) else ():
            average.on_train_end(self.trainer, self)
        self._catch_up()
        if keeps(self.trainer) and self.trainer.global_step > 0 and not (self.curve and self.out.exists()):
            rank_zero_warn("nothing was validated in this run, so nothing was chosen: the last network is written")
            self._write()

    def _catch_up(self) -> None:
        """Judge what was never judged.

        A checkpoint is written before the validation of the same step, and Lightning skips that one when it goes on.
        Without it a run that crashed later would have forgotten the network that lies there, and replace it by a worse.
        As in any validation an average of the weights is what is judged, and written.
        """
        self._choose_anew()
        every, seen = self.trainer.val_check_batch, {row["step"] for row in self.curve}
        passes = self.trainer.global_step * self.trainer.accumulate_grad_batches
        due = self.trainer.enable_validation and isinstance(every, int) and passes > 0 and passes % every == 0
        if due and keeps(self.trainer) and self.trainer.global_step not in seen:
            training = self.training
            self.eval()
            for average in averages(self.trainer):
                average.on_validation_epoch_start(self.trainer, self)
            with torch.no_grad(), self.trainer.precision_plugin.val_step_context():
                self.validation_step(0)
            for average in averages(self.trainer):
                average.on_validation_epoch_end(self.trainer, self)
            self.train(training)

    def _choose_anew(self) -> None:
        """Without the network that was best so far (it lies where an earlier run wrote it) any one is better."""
        if keeps(self.trainer) and math.isfinite(self.best) and not self.out.exists():
            rank_zero_warn(
                f"the best network so far, of score {self.best:.4g}, is not in {self.out} but where an earlier run "
                "wrote it: the best from here on is written"
            )
            self.best = math.inf

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The best score and the curve so far go on with a resumed run."""
        super().on_save_checkpoint(checkpoint)
        checkpoint[self.part] = {"best": self.best, "curve": self.curve}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self._read = checkpoint["global_step"]
        self.best, self.curve = checkpoint[self.part]["best"], checkpoint[self.part]["curve"]
