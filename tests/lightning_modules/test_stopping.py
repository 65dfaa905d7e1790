"""A run that a signal stops leaves a checkpoint of the step that was just done, and no other in its place."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from hypercompress import from_pretrained
from lightning_modules.callbacks import SaveStudent
from lightning_modules.stopping import SaveWhenStopped, _of_this_step
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
@pytest.mark.parametrize("step", [3, 4])  # of epochs of 4
def test_what_sigterm_stops_goes_on_from_that_very_step(
    step: int, folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    whole = distilled(folders, trainer, tmp_path, max_steps=6).network.state_dict()
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SIGTERMException):
        distilled(folders, trainer, tmp_path, Stop(step), max_steps=6)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == step
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


class Rows(Callback):
    """What the loggers would get of each validation and of each step, by the number that they get it for."""

    def __init__(self) -> None:
        self.validated: dict[int, torch.Tensor] = {}
        self.trained: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        self.trained.append(trainer.fit_loop.epoch_loop._batches_that_stepped)

    def on_validation_end(self, trainer: Trainer, *_: object) -> None:
        step = trainer.fit_loop.epoch_loop._batches_that_stepped
        assert step not in self.validated
        self.validated[step] = trainer.callback_metrics["val/kl"]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists", "ignore:on validation images", "ignore:stopped by")
@pytest.mark.parametrize(
    ("stop", "batches"),
    [(Stop(4), 2), (Stop(4, validating=True), 2), (Stop(4), 1), (Stop(8), 2), (Stop(3), 2)],
    ids=["ahead of a validation", "within", "of one batch", "the last", "none due"],
)
def test_a_validation_that_is_stopped_is_made_up_for_and_steps_are_counted_on(
    stop: Stop, batches: int, folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """In the middle of an epoch of 4 steps and at its end; what is chosen by its score sees it, too."""

    def run(*callbacks: Callback, **more: Any) -> tuple[Rows, float, dict[str, torch.Tensor]]:
        rows, best = Rows(), ModelCheckpoint(tmp_path, "best", monitor="val/kl", enable_version_counter=False)
        options: dict[str, Any] = {"max_steps": 8, "val_check_interval": 2, "limit_val_batches": batches, **more}
        try:
            system = distilled(folders, trainer, tmp_path, rows, *callbacks, before=[best], **options)
        except SIGTERMException:
            return rows, 0.0, {}
        assert best.best_model_score is not None
        return rows, float(best.best_model_score), system.network.state_dict()

    whole, score, weights = run()
    assert (list(whole.validated), whole.trained) == ([1, 3, 5, 7], list(range(8)))
    first = run(stop)[0]
    rest, resumed_score, resumed = run(ckpt_path=tmp_path / "last.ckpt")
    assert first.trained + rest.trained == whole.trained
    assert {**first.validated, **rest.validated} == whole.validated
    assert len(first.validated) + len(rest.validated) == 4
    assert resumed_score == score
    assert all(torch.equal(value, resumed[name]) for name, value in weights.items())


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


def reached(ends: Mock, step: int, whole: bool = True) -> Mock:
    """The trainer after a batch, of whose gradients a step was made or not."""
    ends.global_step = step
    callback = ends.callback
    callback.on_train_batch_end(ends, LightningModule(), None, None, 0)
    if not whole:
        callback.on_train_batch_end(ends, LightningModule(), None, None, 1)
    return ends


def of_processes(count: int) -> Mock:
    run = Mock(spec=Trainer, world_size=count, global_step=0, strategy=Mock(), callback=SaveWhenStopped())
    run._signal_connector = Mock(received_sigterm=False)
    run.strategy.reduce_boolean_decision = Mock(side_effect=lambda decision, **_: decision)
    return run


@pytest.mark.parametrize("processes", [1, 2])
def test_a_signal_is_answered_after_the_step_at_hand(processes: int) -> None:
    run = of_processes(processes)
    reached(run, 1)
    run.callback.stopped_by = signal.SIGTERM
    reached(run, 1, whole=False)
    assert not run._signal_connector.received_sigterm
    reached(run, 2)
    assert run._signal_connector.received_sigterm


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("ends", ["validation", "epoch", "accumulating"])
def test_the_end_of_an_epoch_and_a_validation_do_not_lose_it(ends: str, processes: int) -> None:
    """But for gradients that are being accumulated, which no checkpoint holds."""
    run = reached(of_processes(processes), 3, whole=ends != "accumulating")
    callback, system = run.callback, LightningModule()
    callback.stopped_by = signal.SIGTERM
    if ends == "epoch":
        callback.on_train_epoch_end(run, system)
    else:
        callback.on_validation_start(run, system)
        callback.on_validation_batch_end(run, system, None, None, 0)
    assert run._signal_connector.received_sigterm == (ends != "accumulating")


def test_no_validation_but_that_of_steps_asks() -> None:
    """Neither the check ahead of them nor one on its own after a fit."""
    run = of_processes(2)
    run.callback.on_validation_start(run, LightningModule())
    run.callback.setup(reached(run, 3), LightningModule(), "validate")
    run.strategy.reduce_boolean_decision.reset_mock()
    run.callback.on_validation_start(run, LightningModule())
    assert not run.strategy.reduce_boolean_decision.called


def test_other_ends_of_a_run_save_nothing(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    run = trainer(max_steps=1, enable_checkpointing=True, callbacks=[ModelCheckpoint(dirpath=tmp_path / "saved")])
    SaveWhenStopped().on_exception(run, LightningModule(), KeyError("a mistake"))
    SaveWhenStopped().on_exception(run, LightningModule(), SIGTERMException())  # not in a fit
    assert not (tmp_path / "saved").exists()
