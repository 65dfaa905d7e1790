"""The validation images of a run: all of them on each rank, and what the steps were worth there."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

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


def tell(before: dict[str, Any] | None, after: dict[str, Any], where: str, labels: bool, lr: float) -> None:
    """Say what the steps were worth; a student that is near already can lose by them.

    Args:
        before, after: as in a report; ``None``: nothing is known.
        labels: whether these were followed: then top-1 says if the student is worse, else the KL to the teacher.
        lr: the learning rate, for the advice.
    """
    found = before or {}
    parts = [
        (name, found[key], after[key])
        for key, name in (("kl", "KL to the teacher"), ("top1_student", "top-1"))
        if found.get(key) is not None and after[key] is not None
    ]
    if not parts:
        return
    changes = "; ".join(f"{name} {old:.4g} before, {new:.4g} after" for name, old, new in parts)
    worse = [new < old if name == "top-1" else new > old for name, old, new in parts if (name == "top-1") == labels]
    if any(worse):
        advice = f"lower --model.optimization.lr ({lr:g}), or keep what generate gave"
        rank_zero_warn(f"on {where} {changes}: the steps made the student worse; {advice}")
    else:
        rank_zero_info(f"on {where} {changes}")
