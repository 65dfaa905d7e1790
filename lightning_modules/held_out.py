"""The validation images of a run: all of them on each rank, and what the steps were worth there."""

import math
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from hypercompress.fidelity import accuracy, compare
from hypercompress.report import fidelity_json
from hypercompress.running.calling import call_in_precision
from lightning_modules.data import images_of
from lightning_modules.teacher import Batch

LEAST = 1e-4  # nats: less is rounding


def validated(system: LightningModule) -> Any:
    """The data module, if it is to be validated on."""
    return getattr(system.trainer, "datamodule", None) if system.trainer.limit_val_batches else None


def held_out(system: LightningModule) -> Iterator[Batch]:
    """Validation batches on this rank's device, as many as the trainer is told to use; on each rank the same."""
    images, limit = images_of(system), system.trainer.limit_val_batches
    loader = validated(system).val_dataloader() if images is None else images.all_held_out()
    count = int(limit * len(loader)) if isinstance(limit, float) else limit  # as Lightning has it
    for images, labels in islice(loader, count):
        yield images.to(system.device), labels.to(system.device)


def measured(system: LightningModule, teacher: nn.Module | None, network: nn.Module) -> dict[str, Any]:
    """The fidelity on all validation images as a report has it; without a teacher top-1 alone."""
    if teacher is not None:
        return fidelity_json(compare(teacher, network, held_out(system), call_in_precision))
    sizes, batches = list[int](), held_out(system)
    first = next(batches, None)
    if first is not None and bool((first[1] < 0).any()):  # nothing to compare with
        return fidelity_json(None)

    def counted() -> Iterator[Batch]:
        for images, labels in batches if first is None else chain([first], batches):
            sizes.append(len(labels))
            yield images, labels

    top1 = accuracy(network, counted(), call_in_precision)
    return {**fidelity_json(None), "top1_student": top1, "images": sum(sizes)}


def described(module: Any) -> str:
    """What a data module validates on, with its name if it is one of ours."""
    name = getattr(module, "val_data", None) or getattr(module, "data", None)
    return f"validation images of {name}" if isinstance(name, str) else "validation images"


def tell(before: dict[str, Any] | None, after: dict[str, Any], where: str, labels: bool, advice: str) -> None:
    """Say what the steps were worth; a student that is near already can lose by them.

    Args:
        before, after: as in a report; ``None``: nothing is known. A run that goes on may be told to validate on other
            images than it began with: of these nothing is said before.
        labels: whether these were followed: then top-1, where it is known, says if the student is worse, by more than
            its standard error; else the KL to the teacher, by more than `LEAST`.
        advice: what to do then.
    """
    found = before or {}
    named = {"kl": "KL to the teacher", "top1_student": "top-1"}
    known = [key for key in named if found.get(key) is not None and after[key] is not None]
    if not known:
        return
    if found.get("images") != after["images"]:
        values = "; ".join(f"{named[key]} {after[key]:.4g}" for key in known)
        rank_zero_warn(
            f"on {after['images']} {where} {values} after the steps; before them it was measured on "
            f"{found.get('images')}, so the two are not compared; go on with the --data.val_limit and "
            "--trainer.limit_val_batches that the run began with"
        )
        return
    changes = "; ".join(f"{named[key]} {found[key]:.4g} before, {after[key]:.4g} after" for key in known)
    if labels and "top1_student" in known:
        old, new = found["top1_student"], after["top1_student"]
        worse = old - new > math.sqrt(old * (1 - old) / max(1, after["images"]))
    else:
        worse = "kl" in known and after["kl"] - found["kl"] > LEAST
    if worse:
        rank_zero_warn(f"on {where} {changes}: the steps made the student worse; {advice}")
    else:
        rank_zero_info(f"on {where} {changes}")
