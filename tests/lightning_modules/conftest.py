"""A tiny teacher and its student on disk, and a trainer that leaves no files and makes no noise."""

import csv
import shutil
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from hypercompress import Budget, compress
from hypercompress.models import load_model
from hypercompress.student import Student
from lightning_modules.data import ImageDataModule
from lightning_modules.optimization import Optimization
from lightning_modules.teacher import Teacher

# BatchNorm, depthwise convolutions and named feature maps in 0.1 M parameters.
MODEL = "test_efficientnet"
MODEL_ARGS = {"in_chans": 1, "num_classes": 10}
NO_WORKERS = "The '.*_dataloader' does not have many workers"
PRETRAINED_CFG = {"input_size": [1, 28, 28], "mean": [0.286], "std": [0.353]}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With more than three cores Lightning asks for worker processes, which images in memory do not need."""
    here = Path(__file__).parent
    mark = pytest.mark.filterwarnings(f"ignore:{NO_WORKERS}")
    for item in items:
        if here in item.path.parents:
            item.add_marker(mark)


@pytest.fixture(autouse=True)
def _no_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """LightningCLI warns of arguments from two sides; those of pytest are none of its business."""
    monkeypatch.setattr(sys, "argv", ["train.py"])


def quiet(**options: Any) -> Trainer:
    """A trainer for one CPU process that writes nothing."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
    }
    return Trainer(**{**defaults, **options})


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A briefly trained teacher and a student a third of its size, as folders; tests must not change them."""
    place = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    system = Teacher(MODEL, MODEL_ARGS, PRETRAINED_CFG, optimization=Optimization("adamw", 1e-2, 0.0))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", NO_WORKERS)
        run = quiet(max_epochs=2, limit_val_batches=0)
        run.fit(system, ImageDataModule("fashion_mnist_mini", batch_size=32, limit=768))
    teacher = system.student()
    teacher.save_pretrained(place / "teacher")
    student = compress(teacher.model.eval(), Budget(params=0.35), generator="svd", architecture=teacher.architecture)
    student.save_pretrained(place / "student")
    return place / "teacher", place / "student"


@pytest.fixture
def trainer() -> Callable[..., Trainer]:
    """Builds a trainer for one CPU process that writes nothing."""
    return quiet


@pytest.fixture
def zoo(folders: tuple[Path, Path], here: Path) -> Path:
    """A teacher to train on and one to validate on, a held-out one without its files, and the working folder."""
    return zoo_of(folders, here / "zoo")


def zoo_of(folders: tuple[Path, Path], place: Path) -> Path:
    """See the fixture."""
    with_rows = [("one", "train"), ("two", "validation"), ("three", "heldout")]
    for name, _ in with_rows[:2]:
        shutil.copytree(folders[0], place / name)
    with (place / "zoo.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "data", "split"])
        writer.writerows([(name, "fashion_mnist_mini", split) for name, split in with_rows])
    return place


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def add(zoo: Path, name: str, split: str, changed: float = 0.0) -> None:
    """Another teacher: the first one's with every weight changed a little."""
    Student(_changed(zoo / "one", changed), load_model(str(zoo / "one"))[1]).save_pretrained(zoo / name)
    with (zoo / "zoo.csv").open("a", newline="") as file:
        csv.writer(file).writerow([name, "fashion_mnist_mini", split])


def _changed(folder: Path, share: float) -> torch.nn.Module:
    network = load_model(str(folder))[0]
    for parameter in network.parameters():
        parameter.data *= 1 + share
    return network
