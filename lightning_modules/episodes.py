"""What meta-training draws its steps from: the zoo's index, and a teacher with its images."""

import csv
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hypercompress.errors import DataError
from hypercompress.meta import Case

SPLITS = {
    "train": "the hypernetwork learns on them",
    "validation": "they choose its checkpoint and its settings",
    "heldout": "they judge the chosen one, once; meta-training never reads them",
}


@dataclass(frozen=True)
class Episodes:
    """What the steps are drawn from.

    Args:
        images: images in a batch.
        calibration: images behind each teacher's curvature.
        look_ahead: distillation steps to choose from; 0 is the student as generated.
        refit: share of the episodes with data and without distillation that refit the student, in [0, 1].
        refit_images: calibration images that such a student is refitted on.
        free: share of the steps without data, in [0, 1].
        validation: images of the held-out part on which students are judged.
        validation_steps: distillation steps of the look-ahead column of the validation.
    """

    images: int = 64
    calibration: int = 1024
    look_ahead: tuple[int, ...] = (0, 0, 5)
    refit: float = 0.5
    refit_images: int = 512
    free: float = 0.3
    validation: int = 512
    validation_steps: int = 20


@dataclass(frozen=True)
class Member:
    """A teacher of the zoo with its images at hand."""

    case: Case
    calibration: Tensor
    train: Tensor
    held_out: Tensor


@dataclass(frozen=True)
class Entry:
    """One row of the zoo's index."""

    name: str
    folder: Path
    data: str
    split: str


def read_index(zoo: Path) -> list[Entry]:
    """The teachers of ``zoo.csv`` that meta-training may read: those of the splits ``train`` and ``validation``.

    Columns: name, data and split; each teacher is a folder beside the file.

    Raises:
        DataError: no index, an unknown split, or no teacher to train or to validate on. Indices from before there was
            the split ``validation`` are refused by this.
    """
    path = zoo / "zoo.csv"
    if not path.is_file():
        raise DataError(f"received {zoo} without zoo.csv; expected a zoo; run python -m lightning_modules.zoo first")
    with path.open(newline="") as file:
        rows = [Entry(r["name"], zoo / r["name"], r["data"], r["split"]) for r in csv.DictReader(file)]
    if unknown := sorted({row.split for row in rows} - set(SPLITS)):
        raise DataError(
            f"received {path} with split {', '.join(unknown)}; expected {', '.join(SPLITS)}; mend the zoo's config and "
            "run python -m lightning_modules.zoo again"
        )
    for split in ("train", "validation"):
        if not any(row.split == split for row in rows):
            raise DataError(
                f"received {path} without a teacher of split '{split}'; expected at least one; run python -m "
                "lightning_modules.zoo again with a config that has one (nothing that is there is trained anew)"
            )
    return [row for row in rows if row.split != "heldout"]
