from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

from hypercompress.errors import ArtefactError
from lightning_modules.callbacks import SaveStudent, checksum
from lightning_modules.data import ImageDataModule
from lightning_modules.distillation import Distillation
from lightning_modules.source import TeacherSource

Folders = tuple[Path, Path]


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
