"""A run that a signal stops leaves a checkpoint of the step that was just done, and no other in its place."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from hypercompress import from_pretrained
from lightning_modules.callbacks import SaveStudent, SaveWhenStopped, _of_this_step
from tests.lightning_modules.stopping import Folders, Stop, distilled


@pytest.mark.filterwarnings("ignore:stopped by SIGTERM", "ignore:Checkpoint directory .* exists")
def test_what_sigterm_stops_in_its_last_step_is_written_by_the_run_that_goes_on(
    folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    out, point = tmp_path / "out", tmp_path / "last.ckpt"
    with pytest.raises(SIGTERMException):
        distilled(folders, trainer, tmp_path, SaveStudent(out), Stop(2))
    assert not out.exists()
    distilled(folders, trainer, tmp_path, SaveStudent(out), ckpt_path=point)
    trained = torch.load(point, weights_only=True)["state_dict"]
    written = from_pretrained(out).model.state_dict()
    assert all(torch.equal(value, trained[f"network.{name}"]) for name, value in written.items())


@pytest.mark.filterwarnings("ignore:stopped by SIGTERM")
@pytest.mark.parametrize("averaged", [False, True])
def test_an_average_under_validation_is_not_saved_in_the_place_of_the_weights(
    averaged: bool, folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    callbacks = [Stop(2, validating=True), *([EMAWeightAveraging(decay=0.5)] if averaged else [])]
    with pytest.raises(SIGTERMException):
        distilled(folders, trainer, tmp_path, *callbacks, max_steps=4, val_check_interval=2, limit_val_batches=1.0)
    assert (tmp_path / "last.ckpt").exists() != averaged


@pytest.mark.filterwarnings("ignore:stopped by SIGTERM", "ignore:Checkpoint directory .* exists and is not empty")
def test_what_sigterm_stops_goes_on_from_that_very_step(
    folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    whole = distilled(folders, trainer, tmp_path, max_steps=6).network.state_dict()
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SIGTERMException):
        distilled(folders, trainer, tmp_path, Stop(3), max_steps=6)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3
    point = tmp_path / "last.ckpt"
    resumed = distilled(folders, trainer, tmp_path, max_steps=6, ckpt_path=point).network.state_dict()
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.filterwarnings("ignore:stopped by SIGINT")
def test_ctrl_c_stops_as_sigterm_does_and_a_second_one_at_once(
    folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    handler = signal.default_int_handler
    signal.signal(signal.SIGINT, handler)  # ignored where the tests run in the background of a shell
    with pytest.raises(SystemExit):  # of Lightning's
        distilled(folders, trainer, tmp_path, Stop(1, number=signal.SIGINT, times=2))
    signal.signal(signal.SIGINT, handler)
    assert not (tmp_path / "last.ckpt").exists()
    with pytest.raises(SIGTERMException):
        distilled(folders, trainer, tmp_path, Stop(1, number=signal.SIGINT))
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 1
    assert signal.getsignal(signal.SIGINT) is handler


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists", "ignore:on validation images")
@pytest.mark.parametrize(("every", "left"), [(50, "last.ckpt"), (0, "stopped.ckpt")])
def test_a_run_that_is_stopped_leaves_the_checkpoint_of_its_best_step(
    every: int, left: str, folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """It is the user's: its weights are those of the score in it."""

    def run(*callbacks: Callback, **more: Any) -> dict[str, torch.Tensor]:
        best = ModelCheckpoint(tmp_path, "best", monitor="val/kl", enable_version_counter=False)
        options = {"max_steps": 4, "val_check_interval": 2, "limit_val_batches": 1.0, **more}
        system = distilled(folders, trainer, tmp_path, *callbacks, every=every, before=[best], **options)
        return system.network.state_dict()

    whole = run()
    (tmp_path / left).unlink(missing_ok=True)
    with (
        pytest.raises(SIGTERMException),
        pytest.warns(UserWarning, match=rf"after step 3: go on with .* --ckpt_path {tmp_path / left}$"),
    ):
        run(Stop(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.ckpt", left]
    steps = [torch.load(tmp_path / name, weights_only=True)["global_step"] for name in ("best.ckpt", left)]
    assert steps == [2, 3]
    resumed = run(ckpt_path=tmp_path / left)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_what_is_chosen_by_its_score_is_never_written_over(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    """Neither where two callbacks go by one name, nor the second best."""

    def saving(filename: str, monitor: str | None = None, **options: Any) -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path, filename, monitor=monitor, enable_version_counter=False, **options)

    def place(*savings: ModelCheckpoint) -> Path | None:
        run = trainer()
        run.callbacks = list(savings)  # type: ignore[attr-defined]
        return _of_this_step(run)

    assert place() is None
    assert place(saving("a", "val/kl"), saving("b"), saving("c")) == tmp_path / "b.ckpt"
    assert place(saving("a", "val/kl"), saving("a")) == tmp_path / "stopped.ckpt"
    second = saving("{step}", "val/kl", save_top_k=2)
    second.best_k_models = {str(tmp_path / "step=0.ckpt"): torch.tensor(1.0)}
    assert place(second, saving("{step}")) == tmp_path / "stopped.ckpt"
    # ``--ckpt_path last`` finds what lies beside the best, but not in the place of a link to it.
    assert place(saving("a", "val/kl", save_last=True)) == tmp_path / "last.ckpt"
    assert place(saving("a", "val/kl", save_last="link")) == tmp_path / "stopped.ckpt"


def test_other_ends_of_a_run_save_nothing(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    run = trainer(max_steps=1, enable_checkpointing=True, callbacks=[ModelCheckpoint(dirpath=tmp_path / "saved")])
    SaveWhenStopped().on_exception(run, LightningModule(), KeyError("a mistake"))
    SaveWhenStopped().on_exception(run, LightningModule(), SIGTERMException())  # not in a fit
    assert not (tmp_path / "saved").exists()
