"""Training numbers labels as the model counts its classes, whatever the order of their folders."""

import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from hypercompress import Budget, adapt, compress, from_pretrained
from hypercompress.cli.entry import main
from hypercompress.errors import DataError
from hypercompress.report import class_names
from lightning_modules.callbacks import SaveStudent
from lightning_modules.data import ImageDataModule, Inputs
from lightning_modules.distillation import Distillation
from lightning_modules.images import Augment
from lightning_modules.losses import Losses
from lightning_modules.optimization import Optimization
from lightning_modules.source import TeacherSource
from lightning_modules.teacher import Teacher
from tests.lightning_modules.conftest import MODEL, MODEL_ARGS, PRETRAINED_CFG

Folders = tuple[Path, Path]
INPUTS = Inputs(input_size=(1, 28, 28), mean=(0.286,), std=(0.353,))


def folder_of(root: Path, classes: dict[str, int], seed: int = 0) -> str:
    """So many images of each class, which are grey values far apart."""
    random = np.random.default_rng(seed)
    for name, level in classes.items():
        (root / name).mkdir(parents=True)
        for number in range(8):
            noise = random.integers(0, 20, (28, 28))
            Image.fromarray((level + noise).astype("uint8")).save(root / name / f"{number}.png")
    return str(root)


def greys(*levels: float) -> torch.Tensor:
    """Four images of each level, no two the same: copies are left out."""
    images = torch.tensor(levels).repeat_interleave(4)[:, None, None, None].repeat(1, 1, 28, 28)
    return images + 0.01 * torch.randn(images.shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def moved(folders: Folders, tmp_path: Path) -> Path:
    """A student of three classes whose names it knows."""
    images = greys(-2.0, 0.0, 2.0)
    backbone = from_pretrained(folders[1])
    names = ("cat", "dog", "fox")
    student = adapt(backbone, images, torch.arange(3).repeat_interleave(4), steps=0, names=names)
    student.save_pretrained(tmp_path / "moved")
    return tmp_path / "moved"


@pytest.mark.filterwarnings("ignore:on validation images of")
def test_labels_are_numbered_as_the_student_numbers_its_classes(
    moved: Path, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """Whatever their folders' order says: fine-tuning on two of three classes leaves them where they are."""
    data = ImageDataModule(folder_of(tmp_path / "part", {"dog": 73, "fox": 220}), batch_size=4)
    labels_alone = Losses(logits=0.0, features=0.0, labels=1.0)
    tuned = Distillation(moved, None, labels_alone, Optimization("adamw", 1e-4, 0.0))
    trainer(max_steps=2).fit(tuned, data)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert {int(label) for _, labels in loader for label in labels} == {1, 2}
    other = ImageDataModule(folder_of(tmp_path / "other", {"dog": 73, "wolf": 150}), batch_size=4)
    with pytest.raises(DataError, match=r"labels are not the model's: the model has no class wolf; expected classes"):
        trainer(max_steps=1).fit(Distillation(moved, None, labels_alone), other)


@pytest.mark.filterwarnings("ignore:on validation images of")
def test_top1_is_not_measured_on_labels_that_are_not_the_models(
    folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    data = ImageDataModule(folder_of(tmp_path / "images", {"a": 20, "b": 120, "c": 220}), batch_size=4)
    slow = Optimization("adamw", 1e-4, 0.0)
    distillation = Distillation(folders[1], TeacherSource(str(folders[0])), None, slow)
    with pytest.warns(UserWarning, match="top-1 is not measured: 3 classes in the data, 10 in the model"):
        trainer(max_steps=1).fit(distillation, data)
    assert distillation.fidelity["top1_student"] is distillation.fidelity["top1_teacher"] is None
    assert distillation.fidelity["kl"] is not None


@pytest.mark.filterwarnings("ignore:on validation images of")
def test_fewer_classes_than_a_student_of_nameless_ones_has_are_refused(
    folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """Which of its ten they are nobody knows; a teacher that begins anew has learnt none yet."""
    data = ImageDataModule(folder_of(tmp_path / "images", {"a": 20, "b": 120, "c": 220}), batch_size=4)
    said = r"3 classes in the data, 10 in the model; expected a class for each output, .* with hypercompress transfer"
    with pytest.raises(DataError, match=said):
        trainer(max_steps=1).fit(Distillation(folders[1], None, Losses(0.0, features=0.0, labels=1.0)), data)
    run = trainer(max_steps=1)
    run.fit(Teacher(MODEL, MODEL_ARGS, PRETRAINED_CFG), data)
    assert run.global_step == 1
    assert {int(label) for _, labels in data.val_dataloader() for label in labels} == {0, 1, 2}


def test_a_teacher_knows_what_its_outputs_are_called_if_each_was_seen(
    trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """So what is made of it does, and a folder with some of its classes is evaluated as it counts them."""
    three = folder_of(tmp_path / "three", {"cat": 20, "dog": 120, "fox": 220})
    part = folder_of(tmp_path / "part", {"dog": 120, "fox": 220}, seed=1)
    teachers = {}
    for outputs in (3, 4):
        teachers[outputs] = Teacher(MODEL, {**MODEL_ARGS, "num_classes": outputs}, PRETRAINED_CFG)
        saving = SaveStudent(tmp_path / str(outputs))
        trainer(max_steps=1, callbacks=[saving]).fit(teachers[outputs], ImageDataModule(three, batch_size=4))
    names = [class_names(from_pretrained(tmp_path / str(outputs)).report) for outputs in (3, 4)]
    assert names == [["cat", "dog", "fox"], []]
    made = compress(from_pretrained(tmp_path / "3").eval(), Budget(params=0.5), generator="svd")
    made.save_pretrained(tmp_path / "made")
    tuned = Distillation(tmp_path / "made", TeacherSource(str(tmp_path / "3")), None, Optimization("adamw", 1e-6, 0.0))
    data = ImageDataModule(part, batch_size=4)
    trainer(max_steps=1, limit_val_batches=0).fit(tuned, data)
    assert class_names(tuned.student().report) == ["cat", "dog", "fox"]
    assert {int(label) for _, labels in data.val_dataloader() for label in labels} == {1, 2}


def test_commands_take_a_folder_that_knows_no_more_than_its_classes(
    folders: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = from_pretrained(folders[0])
    assert set(student.report) == {"classes"}
    assert main(["report", str(folders[0])]) == 0
    assert "no report: this student was not made by generate" in capsys.readouterr().out
    assert main(["report", str(folders[0]), "--html", str(tmp_path / "page.html")]) == 2
    assert "which has no report; expected a student made by" in capsys.readouterr().err
    moved = adapt(student, greys(-2.0, 2.0), torch.arange(2).repeat_interleave(4), steps=0, names=("a", "b"))
    moved.save_pretrained(tmp_path / "moved")
    assert main(["report", str(tmp_path / "moved")]) == 0
    assert "Before that" not in capsys.readouterr().out


def test_folders_that_timm_numbers_otherwise_are_told(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    data = ImageDataModule(folder_of(tmp_path / "images", {"2": 20, "10": 120, "dog": 220}), batch_size=4)
    teacher = Teacher(MODEL, {**MODEL_ARGS, "num_classes": 3}, PRETRAINED_CFG)
    with pytest.warns(UserWarning, match="10, 2, dog, as torchvision sorts them; timm's loader takes 2, 10, dog"):
        trainer(max_steps=1).fit(teacher, data)


def test_validation_images_are_numbered_as_the_training_images(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    train = folder_of(tmp_path / "train", {"cat": 20, "dog": 120, "fox": 220})
    part = folder_of(tmp_path / "val", {"dog": 120, "fox": 220}, seed=1)
    teacher = Teacher(MODEL, {**MODEL_ARGS, "num_classes": 3}, PRETRAINED_CFG)
    data = ImageDataModule(train, val_data=part, batch_size=4)
    trainer(max_steps=1).fit(teacher, data)
    assert {int(label) for _, labels in data.val_dataloader() for label in labels} == {1, 2}
    alone = ImageDataModule(train, val_data=part, batch_size=4)
    trainer().validate(teacher, alone, verbose=False)  # which opens no training images
    assert {int(label) for _, labels in alone.val_dataloader() for label in labels} == {1, 2}
    strange = ImageDataModule(train, val_data=folder_of(tmp_path / "strange", {"cat": 20, "wolf": 150}), batch_size=4)
    with pytest.raises(DataError, match="labels are not the model's: the model has no class wolf"):
        trainer(max_steps=1).fit(teacher, strange)


def test_another_model_numbers_the_labels_anew(tmp_path: Path) -> None:
    """What one model could not read is not lost for the next."""
    data = ImageDataModule(folder_of(tmp_path, {"cat": 20, "dog": 120}), inputs=INPUTS, batch_size=4)
    data.setup("fit")

    def labels() -> set[int]:
        return {int(label) for _, labels in data.val_dataloader() for label in labels}

    with pytest.warns(UserWarning, match="top-1 is not measured: 2 classes in the data, 10 in the model"):
        data.number_by((), 10, followed=False)
    assert labels() == {-1}
    data.number_by(("ant", "cat", "dog"), 3, followed=True)
    assert labels() == {1, 2}
    data.number_by(("dog", "cat"), 2, followed=True)
    assert labels() == {0, 1}


@pytest.mark.parametrize("augment", ["none", "crop"])  # kept in memory, and prepared as they are used
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_class_names_in_another_unicode_form_are_the_models(form: str, augment: Augment, tmp_path: Path) -> None:
    """As a Mac writes folders."""
    classes = {unicodedata.normalize(form, name): 20 for name in ("Zebra", "\u00c4pfel")}
    data = ImageDataModule(folder_of(tmp_path, classes), inputs=INPUTS, batch_size=4, augment=augment)
    data.setup("fit")
    data.number_by(("Birnen", "\u00c4pfel", "Zebra"), 3, followed=True)
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert {int(label) for _, labels in loader for label in labels} == {1, 2}
