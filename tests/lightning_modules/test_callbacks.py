import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from torch import nn

from hypercompress.errors import ArtefactError
from lightning_modules.callbacks import SaveStudent, StepLines, TellReplaced, _ended, checksum, name_of
from lightning_modules.data import ImageDataModule
from lightning_modules.distillation import Distillation
from lightning_modules.source import TeacherSource
from tests.lightning_modules.stopping import Folders, distilled


def test_a_folder_in_the_way_is_refused_before_the_first_step(
    folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    (tmp_path / "precious.txt").write_text("mine")
    system = Distillation(folders[1], TeacherSource(str(folders[0])))
    for overwrite in (True, False):
        run = trainer(max_steps=1, callbacks=[SaveStudent(tmp_path, overwrite=overwrite)])
        with pytest.raises(ArtefactError, match="received"):
            run.fit(system, ImageDataModule("fashion_mnist_mini", limit=32))
        assert run.global_step == 0
    assert (tmp_path / "precious.txt").read_text() == "mine"


def test_a_student_folder_is_replaced_by_the_next_run(
    folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    hashes = []
    for lr in (0, 1):
        torch.manual_seed(lr)
        system = Distillation(folders[1], TeacherSource(str(folders[0])))
        run = trainer(max_steps=1 + lr, limit_val_batches=0, callbacks=[SaveStudent(out)])
        run.fit(system, ImageDataModule("fashion_mnist_mini", limit=64, batch_size=16))
        hashes.append((out / "config.json").read_text())
    assert hashes[0] != hashes[1]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]  # nothing temporary is left


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_what_a_run_will_replace_is_told_unless_it_goes_on(
    folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def told(**options: Any) -> list[str]:
        caplog.clear()
        with caplog.at_level("INFO"):
            callbacks = SaveStudent(tmp_path / "out"), TellReplaced()
            distilled(folders, trainer, tmp_path, *callbacks, every=1, **options)
        return [message.partition(":")[0] for message in caplog.messages if "of an earlier run" in message]

    assert told() == []
    before = (tmp_path / "last.ckpt").read_bytes()
    (tmp_path / "stopped.ckpt").write_bytes(before)
    out, kept = f"{tmp_path / 'out'} of an earlier run may be replaced", "of an earlier run is kept as"
    assert told() == [out, *[f"{tmp_path / name} {kept} {name}.old" for name in ("last.ckpt", "stopped.ckpt")]]
    assert (tmp_path / "last.ckpt.old").read_bytes() == before
    assert told(max_steps=3, ckpt_path=tmp_path / "last.ckpt") == []


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_run_that_stops_before_its_first_checkpoint_leaves_none_of_another_run(
    folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """Else it would be taken up from there, and the other run's student would be its result."""

    class Fails(Callback):
        def on_train_batch_end(self, *_: object) -> None:
            raise KeyError("broken")

    distilled(folders, trainer, tmp_path, every=1)
    with pytest.raises(KeyError, match="broken"):
        distilled(folders, trainer, tmp_path, TellReplaced(), Fails())
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt.old"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"filename": "last", "enable_version_counter": False}, True),
        ({"filename": "last"}, False),  # beside it
        ({"filename": "{step}", "enable_version_counter": False}, False),
        ({}, False),
    ],
)
def test_a_checkpoint_is_replaced_where_it_has_onename_of(options: dict[str, Any], named: bool, tmp_path: Path) -> None:
    assert name_of(ModelCheckpoint(dirpath=tmp_path, **options)) == (tmp_path / "last.ckpt" if named else None)


@pytest.mark.parametrize(
    ("terminal", "bar", "seconds", "lines"),
    [(False, True, 0.0, 3), (True, True, 0.0, 0), (True, False, 0.0, 3), (False, False, 1e6, 0)],
)
def test_lines_stand_in_for_a_bar_where_no_terminal_shows_one(
    terminal: bool,
    bar: bool,
    seconds: float,
    lines: int,
    folders: Folders,
    trainer: Callable[..., Trainer],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: terminal)
    monkeypatch.setattr(Trainer, "progress_bar_callback", object() if bar else None)
    system = Distillation(folders[1], TeacherSource(str(folders[0])))
    with caplog.at_level("INFO"):
        run = trainer(max_steps=3, limit_val_batches=0, callbacks=[StepLines(seconds)])
        run.fit(system, ImageDataModule("fashion_mnist_mini", limit=64, batch_size=16))
    said = [message for message in caplog.messages if message.startswith("step ")]
    assert said == [f"step {step} of 3" for step in range(1, lines + 1)]


@pytest.mark.filterwarnings(
    "ignore:Checkpoint directory .* exists and is not empty", "ignore:no student folder", "ignore:on validation images"
)
def test_a_fit_that_takes_no_step(folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    """From the checkpoint of its end it writes what was to be left; without batches and on trial it writes nothing."""
    out, point = tmp_path / "out", tmp_path / "last.ckpt"

    def run(**options: Any) -> dict[str, bytes]:
        callbacks = (SaveStudent(out), EMAWeightAveraging(decay=0.5))
        distilled(folders, trainer, tmp_path, *callbacks, every=2, **{"limit_val_batches": 1.0, **options})
        return {path.name: path.read_bytes() for path in out.iterdir()}

    whole = run()
    assert json.loads(whole["report.json"])["fidelity"]["kl"] is not None
    assert run(ckpt_path=point) == whole
    shutil.rmtree(out)
    assert run(ckpt_path=point) == whole  # with the average of the weights, and measured
    shutil.copy(point, tmp_path / "end.ckpt")
    another = run(max_steps=1)  # an older run's
    assert another != whole
    assert run(limit_train_batches=0) == run(fast_dev_run=True) == another
    assert run(limit_train_batches=0, ckpt_path=tmp_path / "end.ckpt") == another
    assert run(ckpt_path=tmp_path / "end.ckpt") == whole


def test_an_average_that_takes_an_epoch_more_is_not_made_up_for(trainer: Callable[..., Trainer]) -> None:
    run = trainer(callbacks=[StochasticWeightAveraging(swa_lrs=1e-3)])
    assert not _ended(run, LightningModule())
    assert _ended(trainer(), LightningModule())


def test_a_system_without_a_student(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    run = trainer(max_steps=1)
    with pytest.raises(TypeError, match="received SaveStudent with LightningModule"):
        SaveStudent(tmp_path / "out").setup(run, LightningModule(), "fit")
    SaveStudent(tmp_path / "out").setup(run, LightningModule(), "validate")  # saves nothing, asks nothing


def test_the_checksum_sees_a_change_and_a_swap() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3))
    before = checksum(model)
    assert torch.equal(before, checksum(model))
    with torch.no_grad():
        model[0].weight[1, 2] += 1e-6
    changed = checksum(model)
    assert changed != before
    with torch.no_grad():
        model[0].weight.copy_(model[0].weight.flip(0))
    assert checksum(model) != changed
