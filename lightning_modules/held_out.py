"""The validation images of a run, for what is measured on all of them at once, on each rank."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from lightning.pytorch import LightningModule

from lightning_modules.teacher import Batch


def validated(system: LightningModule) -> Any:
    """The data module, if it is to be validated on."""
    return getattr(system.trainer, "datamodule", None) if system.trainer.limit_val_batches else None


def held_out(system: LightningModule) -> Iterator[Batch]:
    """Validation batches on this rank's device, as many as the trainer is told to use."""
    loader, limit = validated(system).val_dataloader(), system.trainer.limit_val_batches
    count = round(limit * len(loader)) if isinstance(limit, float) else limit
    for images, labels in islice(loader, count):
        yield images.to(system.device), labels.to(system.device)


def described(module: Any) -> str:
    """What a data module validates on, with its name if it is one of ours."""
    name = getattr(module, "val_data", None) or getattr(module, "data", None)
    return f"validation images of {name}" if isinstance(name, str) else "validation images"
