"""The validation images of a run, and what the steps were worth there."""

import math
from collections.abc import Iterator
from dataclasses import astuple
from itertools import chain, islice
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from hypercompress.errors import DataError
from hypercompress.fidelity import Fidelity, accuracy, compare
from hypercompress.report import fidelity_json
from hypercompress.running.calling import call_in_precision
from lightning_modules.data import images_of
from lightning_modules.systems import Batch

LEAST = 1e-4  # nats: less is rounding


def validated(system: LightningModule) -> Any:
    """The data module, if it is to be validated on."""
    return getattr(system.trainer, "datamodule", None) if system.trainer.limit_val_batches else None


def held_out(system: LightningModule) -> Iterator[Batch]:
    """Validation batches on this rank's device, as many as the trainer is told to use: its share of those that one
    process would have; of another data module than ours all of them on each rank.
    """
    ours, limit = images_of(system), system.trainer.limit_val_batches
    if ours is None:
        loader = validated(system).val_dataloader()
        count = int(limit * len(loader)) if isinstance(limit, float) else limit  # as Lightning has it
    else:
        loader, count = ours.held_out(limit), None
    for images, labels in islice(loader, count):
        yield images.to(system.device), labels.to(system.device)


def measured(system: LightningModule, teacher: nn.Module | None, network: nn.Module) -> dict[str, Any]:
    """The fidelity on all validation images as a report has it, the same on each rank; without a teacher top-1 alone.

    Raises:
        DataError: there is not one.
    """
    batches = held_out(system)
    first = next(batches, None)
    if first is None:
        found = Fidelity(0.0, 0.0, 0.0, 0.0, 0)
    elif teacher is not None:
        found = compare(teacher, network, chain([first], batches), call_in_precision)
    else:
        found = _labelled(network, chain([first], batches))
    found = _together(system, found)
    if found.images == 0:
        raise DataError(
            f"received no validation image with limit_val_batches {system.trainer.limit_val_batches}; expected one or "
            "more; raise it, or set it to 0 to leave the validation out"
        )
    if teacher is not None:
        return fidelity_json(found)
    labelled = {} if found.top1_student is None else {"top1_student": found.top1_student, "images": found.images}
    return {**fidelity_json(None), **labelled}


def _labelled(network: nn.Module, batches: Iterator[Batch]) -> Fidelity:
    """By labels alone; without them nothing is measured."""
    sizes, first = list[int](), next(batches)
    if bool((first[1] < 0).any()):
        return Fidelity(None, 0.0, None, None, len(first[1]))

    def counted() -> Iterator[Batch]:
        for images, labels in chain([first], batches):
            sizes.append(len(labels))
            yield images, labels

    top1 = accuracy(network, counted(), call_in_precision)
    return Fidelity(None, 0.0, None, top1, sum(sizes))


def _together(system: LightningModule, found: Fidelity) -> Fidelity:
    """What all ranks found, each on its share."""
    if system.trainer.world_size == 1 or images_of(system) is None:
        return found
    row = [math.nan if value is None else value for value in astuple(found)]
    rows = system.all_gather(torch.tensor(row, dtype=torch.float64))
    assert isinstance(rows, Tensor)  # as one tensor went in
    rows = rows[rows[:, -1] > 0].cpu()
    if len(rows) == 0:
        return found
    images = rows[:, -1]
    means = ((images @ rows[:, :-1]) / images.sum()).tolist()
    agreement, kl, teacher, student = (None if math.isnan(mean) else float(mean) for mean in means)
    assert kl is not None  # as `compare` promises
    return Fidelity(agreement, kl, teacher, student, int(images.sum()))


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
