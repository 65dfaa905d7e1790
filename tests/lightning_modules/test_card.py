"""Training through Lightning on a graphics card, in mixed precision; and where a system's teachers are put."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

from hypercompress.generator import HypernetConfig
from lightning_modules.data import ImageDataModule
from lightning_modules.distillation import Distillation
from lightning_modules.episodes import Episodes
from lightning_modules.meta_training import EpisodeModule, MetaTraining
from lightning_modules.optimization import Optimization
from lightning_modules.source import TeacherSource
from lightning_modules.systems import device_of_run

Folders = tuple[Path, Path]
CARD: dict[str, Any] = {"accelerator": "gpu", "precision": "bf16-mixed", "limit_val_batches": 1}

needs_card = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a graphics card that CUDA reaches")


def test_in_setup_a_system_knows_where_it_will_run(tmp_path: Path, trainer: Callable[..., Trainer]) -> None:
    system = MetaTraining(tmp_path, tmp_path / "out")
    assert device_of_run(system) == torch.device("cpu")
    run: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    system._trainer = run
    assert device_of_run(system) == torch.device("meta")
    system._trainer = trainer()
    assert device_of_run(system) == torch.device("cpu")


@needs_card
def test_a_student_is_distilled_on_the_card(folders: Folders, trainer: Callable[..., Trainer]) -> None:
    system = Distillation(folders[1], TeacherSource(str(folders[0])))
    before = {name: p.detach().clone() for name, p in system.named_parameters()}
    run = trainer(max_steps=1, **CARD)
    run.fit(system, ImageDataModule("fashion_mnist_mini", batch_size=32, limit=64))
    assert run.global_step == 1
    assert any(not torch.equal(p.cpu(), before[name]) for name, p in system.named_parameters())
    assert 0 <= system.fidelity["agreement"] <= 1


@needs_card
@pytest.mark.parametrize("free", [0.0, 1.0])
@pytest.mark.parametrize("refit", [0.0, 1.0])
def test_the_hypernetwork_learns_on_the_card(
    folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path, free: float, refit: float
) -> None:
    for name in ("one", "two"):
        shutil.copytree(folders[0], tmp_path / name)
    with (tmp_path / "zoo.csv").open("w", newline="") as file:
        rows = [("one", "fashion_mnist_mini", "train"), ("two", "fashion_mnist_mini", "validation")]
        csv.writer(file).writerows([("name", "data", "split"), *rows])
    episodes = Episodes(
        images=8, calibration=32, look_ahead=(0,), refit=refit, refit_images=16, free=free, validation=16,
        validation_steps=1,
    )  # fmt: skip
    system = MetaTraining(
        tmp_path, tmp_path / "out", HypernetConfig(width=16, depth=1, heads=2), episodes=episodes,
        optimization=Optimization("adamw", 1e-3, 0.0),
    )  # fmt: skip
    run = trainer(max_steps=1, **{**CARD, "limit_val_batches": 0})
    run.fit(system, EpisodeModule())
    assert run.global_step == 1
    assert all(bool(p.isfinite().all()) for p in system.parameters())
