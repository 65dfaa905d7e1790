"""Distillation that cannot run: what is missing is named before, or at the step where it shows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from hypercompress import from_pretrained
from hypercompress.errors import ArtefactError, DataError, ModelError, NonFiniteError
from hypercompress.student import Student
from lightning_modules.callbacks import SaveStudent
from lightning_modules.data import ImageDataModule
from lightning_modules.distillation import Distillation
from lightning_modules.losses import Losses
from lightning_modules.optimization import Optimization, SettingError
from lightning_modules.source import TeacherSource
from lightning_modules.teacher import Teacher
from tests.exported import mlp_student
from tests.lightning_modules.conftest import MODEL, MODEL_ARGS, PRETRAINED_CFG
from tests.lightning_modules.distilled import Folders, images, system


def test_no_teacher_to_follow(folders: Folders) -> None:
    with pytest.raises(ModelError, match="received no teacher with a weight on its logits or features"):
        Distillation(folders[1])


@pytest.mark.parametrize(
    ("told", "said"),
    [({"outputs": "numbers"}, "are numbers"), ({"class_axis": 1}, "have their classes along axis 1")],
    ids=["numbers", "classes elsewhere"],
)
def test_outputs_that_are_read_otherwise_are_not_distilled_as_a_classifier_s(
    told: dict[str, Any], said: str, folders: Folders, tmp_path: Path
) -> None:
    student = from_pretrained(folders[1])
    student.report |= told
    student.save_pretrained(tmp_path / "student")
    with pytest.raises(ModelError, match=f"received a student whose outputs {said}"):
        Distillation(tmp_path / "student", TeacherSource(str(folders[0])))


def test_labels_that_are_not_there(folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    for index in range(8):
        Image.new("L", (28, 28), index * 30).save(tmp_path / f"{index}.png")
    data = ImageDataModule(str(tmp_path), batch_size=4)
    trainer(max_steps=1, limit_val_batches=1).fit(system(folders), data)  # label-free: fine
    with pytest.raises(DataError, match="images without labels"):
        trainer(max_steps=1, limit_val_batches=0).fit(system(folders, Losses(labels=1.0)), data)


def test_features_alone_of_a_model_that_names_none(folders: Folders, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = Losses(logits=0.0, features=1.0)
    loaded = from_pretrained

    def nameless(folder: Path) -> Student:
        student = loaded(folder)
        vars(student.model)["feature_info"] = []
        return student

    monkeypatch.setattr("lightning_modules.distillation.from_pretrained", nameless)
    with pytest.raises(ModelError, match="received a weight on features alone"):
        system(folders, losses)


def test_features_alone_in_several_processes(
    folders: Folders, trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They reach no classifier, whose gradient the processes would wait for."""
    alone = Losses(logits=0.0, features=1.0)
    for losses in (alone, Losses(features=1.0), Losses(logits=0.0, features=1.0, labels=1.0)):
        losses.require_all_weights(1)
        if losses is not alone:
            losses.require_all_weights(2)
    distillation = system(folders, alone)
    distillation.trainer = trainer(max_steps=1)
    distillation.setup("fit")
    monkeypatch.setattr(Trainer, "world_size", 2)
    with pytest.raises(SettingError, match=r"received a weight on features alone for 2 processes; expected a term"):
        distillation.setup("fit")


@pytest.mark.parametrize(
    "wrong",
    [{"logits": -1.0}, {"logits": 0.0, "features": 0.0}, {"temperature": 0.0}],
)
def test_wrong_losses(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected weights of 0 or more, one above 0, and a temperature above 0"):
        Losses(**wrong)


def test_no_student_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="expected a student folder"):
        Distillation(tmp_path, TeacherSource("resnet18"))


def test_a_loss_that_is_not_finite_stops_the_run(
    folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    run = trainer(max_steps=8, limit_val_batches=0, callbacks=[SaveStudent(tmp_path / "out")])
    with pytest.raises(NonFiniteError, match=r"at step [1-7]"):
        run.fit(system(folders, lr=1e30), images())
    assert not (tmp_path / "out").exists()


def test_a_teacher_that_is_not_there_is_named_with_the_options_for_it(folders: Folders) -> None:
    with pytest.raises(
        ModelError, match=r"'runs/teacher/teacher'.*; this is the teacher: name it with --model.teacher"
    ):
        Distillation(folders[1], TeacherSource("runs/teacher/teacher"))


def test_a_teacher_of_train_is_told_the_options_of_train(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ModelError, match=r"check the model name and --model\.teacher\.model_args \(num_classes"):
        TeacherSource("test_resnet", checkpoint=tmp_path / "other.pth").load()


def test_a_student_of_ones_own_class_is_trained_in_a_loop_of_ones_own(tmp_path: Path) -> None:
    mlp_student().save_pretrained(tmp_path / "mine")
    with pytest.raises(ArtefactError, match=r"received the student .*mine of a model of your own class"):
        Distillation(tmp_path / "mine")


@pytest.mark.parametrize(
    ("optimizer", "losses"), [("sgd", Losses()), ("adamw", Losses(labels=1.0)), ("adamw", Losses(0.0, 1.0, 0.0, 1.0))]
)
def test_no_rate_is_chosen_for_labels_and_other_optimisers(
    optimizer: str, losses: Losses, folders: Folders, trainer: Callable[..., Trainer]
) -> None:
    """That is no concern of a validation."""
    source = TeacherSource(str(folders[0]))
    distillation = Distillation(folders[1], source, losses, Optimization(optimizer, "auto"))
    trainer(limit_val_batches=1).validate(distillation, images(), verbose=False)
    with pytest.raises(SettingError, match=r"received lr auto for optimizer .*set --model.optimization.lr"):
        trainer(max_steps=1).fit(distillation, images())


def test_no_rate_is_chosen_for_a_teacher(trainer: Callable[..., Trainer]) -> None:
    teacher = Teacher(MODEL, MODEL_ARGS, PRETRAINED_CFG, optimization=Optimization("adamw", "auto"))
    with pytest.raises(SettingError, match=r"received lr auto; .*only the distillation"):
        trainer(max_steps=1, limit_val_batches=0).fit(teacher, images())


def test_labels_have_a_number_where_nothing_is_said(folders: Folders) -> None:
    distillation = Distillation(folders[1], TeacherSource(str(folders[0])), Losses(labels=1.0))
    assert isinstance(distillation.optimization.lr, float)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_weights_are_not_trained_in_half_precision(
    precision: str, folders: Folders, trainer: Callable[..., Trainer]
) -> None:
    teacher = Teacher(MODEL, MODEL_ARGS, PRETRAINED_CFG)
    for each in (system(folders), teacher):
        with pytest.raises(SettingError, match=f"received --trainer.precision {precision}, in .* choose bf16-mixed"):
            trainer(max_steps=1, precision=precision).fit(each, images())
    trainer(precision=precision, limit_val_batches=1).validate(system(folders), images(), verbose=False)
