"""Distillation of the small student, and images for it."""

from pathlib import Path
from typing import Any

from lightning_modules.data import ImageDataModule
from lightning_modules.distillation import Distillation
from lightning_modules.losses import Losses
from lightning_modules.optimization import Optimization
from lightning_modules.source import TeacherSource

Folders = tuple[Path, Path]


def system(folders: Folders, losses: Losses | None = None, lr: float = 3e-3, **options: Any) -> Distillation:
    teacher, student = folders
    optimization = Optimization("adamw", lr, 0.0, warmup=0.1)
    return Distillation(student, TeacherSource(str(teacher)), losses, optimization, **options)


def images(**options: Any) -> ImageDataModule:
    return ImageDataModule("fashion_mnist_mini", **{"batch_size": 32, "limit": 256, "val_limit": 128, **options})
