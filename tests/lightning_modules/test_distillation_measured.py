"""What a run of distillation reports: measured on which images, before and after, and how many steps."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from hypercompress import from_pretrained
from hypercompress.errors import DataError
from hypercompress.fidelity import compare
from hypercompress.models import load_model
from lightning_modules.callbacks import SaveStudent
from lightning_modules.distillation import Distillation
from lightning_modules.held_out import held_out, measured, tell
from lightning_modules.source import TeacherSource
from tests.lightning_modules.distilled import Folders, images, system


def test_the_report_holds_what_an_independent_measurement_gives(
    folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    data = images()
    trainer(max_steps=4, callbacks=[SaveStudent(tmp_path / "out")]).fit(system(folders), data)
    teacher, _ = load_model(str(folders[0]))
    student = from_pretrained(tmp_path / "out")
    found = compare(teacher, student.model, data.val_dataloader())
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    before = json.loads((folders[1] / "report.json").read_text())
    assert found.images == report["fidelity"]["images"] == 128
    for key in ("agreement", "kl", "top1_teacher", "top1_student"):
        assert report["fidelity"][key] == pytest.approx(getattr(found, key), abs=1e-6)
    assert report["distilled_steps"] == 4
    assert report["measured_on"] == "validation images of fashion_mnist_mini"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Trained for 4 steps" in card
    assert "images 128, measured on validation images of fashion_mnist_mini." in card
    assert "calibration images" not in card
    assert report["layers"] == before["layers"]
    assert student.ranks == from_pretrained(folders[1]).ranks


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # as in any resumed run
def test_what_the_steps_were_worth_is_measured_on_the_same_images(
    folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    data, saving = images(), ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=2)
    distillation = system(folders)
    options = {"callbacks": [saving], "enable_checkpointing": True}
    trainer(max_steps=2, **options).fit(distillation, data)
    teacher, _ = load_model(str(folders[0]))
    wanted = compare(teacher, from_pretrained(folders[1]).model, data.val_dataloader()).kl
    assert distillation.before["kl"] == pytest.approx(wanted, rel=1e-5)
    resumed = system(folders)
    trainer(max_steps=3, **options).fit(resumed, images(), ckpt_path=tmp_path / "step=2.ckpt", weights_only=True)
    assert resumed.before == distillation.before, "not what the first two steps had left"


@pytest.mark.parametrize("less", ["images", "batches"])
def test_what_was_measured_on_other_images_is_not_compared(
    less: str, folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    first = trainer(max_steps=2)
    first.fit(system(folders), images())
    first.save_checkpoint(tmp_path / "two.ckpt")
    run = trainer(max_steps=3, limit_val_batches=1 if less == "batches" else 1.0)
    data = images(val_limit=32 if less == "images" else 128)
    with pytest.warns(UserWarning, match=r"on 32 .* KL to the teacher \d.* after the steps; .* on 128, so .* not comp"):
        run.fit(system(folders), data, ckpt_path=tmp_path / "two.ckpt", weights_only=True)


def test_steps_that_make_the_student_worse_are_warned_of(folders: Folders, trainer: Callable[..., Trainer]) -> None:
    distillation = system(folders, lr=0.3)
    with pytest.warns(UserWarning, match=r"the student worse; .*lower --model.optimization.lr \(0.3\)"):
        trainer(max_steps=4).fit(distillation, images())
    assert distillation.before["kl"] < distillation.fidelity["kl"]


@pytest.mark.parametrize(
    ("labels", "kl", "top1", "worse"),
    [
        (False, 0.2, 0.8, True),
        (False, 0.10005, 0.7, False),
        (True, 0.2, 0.9, False),
        (True, 0.2, 0.74, False),
        (True, 0.05, 0.7, True),
        (True, 0.2, None, True),
    ],
)
def test_the_kl_says_if_a_student_is_worse_and_with_labels_top1(
    labels: bool, kl: float, top1: float | None, worse: bool
) -> None:
    before = {"kl": 0.1, "top1_student": 0.75, "images": 1000}
    after = {"kl": kl, "top1_student": top1, "images": 1000}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tell(before, after, "images", labels, "think")
        tell(None, after, "images", labels, "think")
        tell({"kl": None, "top1_student": None}, after, "images", labels, "think")
    told = [str(warning.message) for warning in caught]
    assert len(told) == worse
    assert all(text.startswith(f"on images KL to the teacher 0.1 before, {kl:g} after") for text in told)
    assert all(text.endswith(": the steps made the student worse; think") for text in told)


@pytest.mark.filterwarnings("ignore:.*the steps made the student worse")  # three steps of a far one
def test_steps_add_up_over_runs(folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    trainer(max_steps=2, callbacks=[SaveStudent(tmp_path / "one")]).fit(system(folders), images())
    second = Distillation(tmp_path / "one", TeacherSource(str(folders[0])))
    trainer(max_steps=3, callbacks=[SaveStudent(tmp_path / "two")]).fit(second, images())
    assert json.loads((tmp_path / "two" / "report.json").read_text())["distilled_steps"] == 5


def test_a_share_of_the_validation_images_is_that_of_the_trainer(
    folders: Folders, trainer: Callable[..., Trainer]
) -> None:
    seen = list[int]()

    class Counting(Callback):
        def on_validation_batch_end(self, _run: Trainer, _: LightningModule, *args: Any) -> None:
            seen.append(len(args[1][1]))

    distillation = system(folders)
    run = trainer(limit_val_batches=0.7, callbacks=[Counting()])  # of four batches
    run.validate(distillation, images(), verbose=False)
    assert [len(labels) for _, labels in held_out(distillation)] == seen == [32, 32]


@pytest.mark.parametrize("ranks", [2, 3, 5])
@pytest.mark.parametrize("by", ["teacher", "labels", "nothing"])
def test_what_ranks_measure_of_their_shares_is_that_of_all(
    by: str, ranks: int, folders: Folders, trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of few batches, the last of them smaller; where there are more ranks than batches, some have none."""
    distillation, rows = system(folders), list[torch.Tensor]()
    data = images(val_limit=100)  # batches of 32, 32, 32 and 4
    trainer().validate(distillation, data, verbose=False)
    if by == "nothing":
        data._parts["val"] = data._parts["val"].relabelled(())
    teacher = distillation.teacher if by == "teacher" else None
    whole = measured(distillation, teacher, distillation.network)
    assert whole["images"] == (None if by == "nothing" else 100)
    assert (whole["kl"] is not None, whole["top1_student"] is not None) == (by == "teacher", by != "nothing")

    def gathered(row: torch.Tensor) -> torch.Tensor:
        rows.append(row)
        return torch.stack(rows)

    monkeypatch.setattr(Trainer, "world_size", ranks)
    monkeypatch.setattr(distillation, "all_gather", gathered)
    for rank in range(ranks):
        monkeypatch.setattr(Trainer, "global_rank", rank)
        found = measured(distillation, teacher, distillation.network)
    assert [int(row[-1]) for row in rows] == {
        2: [64, 36] if by != "nothing" else [32, 32],
        3: [36, 32, 32] if by != "nothing" else [32, 32, 32],
        5: [32, 32, 32, 4, 0],
    }[ranks]
    assert found == pytest.approx(whole)


def test_no_validation_image_is_refused(folders: Folders, trainer: Callable[..., Trainer]) -> None:
    distillation = system(folders)
    run = trainer(limit_val_batches=1)
    run.validate(distillation, images(), verbose=False)
    run.limit_val_batches = 0.01  # of four batches
    with pytest.raises(DataError, match=r"received no validation image with limit_val_batches 0\.01; expected one or"):
        measured(distillation, distillation.teacher, distillation.network)


def test_without_validation_nothing_is_measured(
    folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    run = trainer(max_steps=1, limit_val_batches=0, callbacks=[SaveStudent(tmp_path / "out")])
    run.fit(system(folders), images())
    assert set(json.loads((tmp_path / "out" / "report.json").read_text())["fidelity"].values()) == {None}
