"""What meta-training draws its steps from: the zoo's index, and a teacher with its images."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from hypercompress.errors import DataError
from hypercompress.meta import Case
from lightning_modules.index import rows_of
from lightning_modules.optimization import SettingError

SPLITS = {
    "train": "the hypernetwork learns on them",
    "validation": "they choose its checkpoint and its settings",
    "heldout": "they judge the chosen one, once; meta-training never reads them",
}
LEFT_OUT = "left_out"  # of the one teacher that a run leaves out; no split of the zoo's


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
        teachers: names of the zoo's teachers that take part; empty: all.
        leave_out: one that is never trained on, but judged at each validation, in columns of its own; none of the
            validation's scores that choose the checkpoint is its.

    Raises:
        SettingError: a number or a share out of range, or no ``look_ahead`` to choose from.
    """

    images: int = 64
    calibration: int = 1024
    look_ahead: tuple[int, ...] = (0, 0, 5)
    refit: float = 0.5
    refit_images: int = 512
    free: float = 0.3
    validation: int = 512
    validation_steps: int = 20
    teachers: tuple[str, ...] = ()
    leave_out: str | None = None

    def __post_init__(self) -> None:
        shares = {key: getattr(self, key) for key in ("refit", "free")}
        counts = {key: getattr(self, key) for key in ("images", "calibration", "refit_images", "validation")}
        faults = [
            f"{key} {value:g}, expected a share in [0, 1]" for key, value in shares.items() if not 0 <= value <= 1
        ]
        faults += [f"{key} {value}, expected 1 or more" for key, value in counts.items() if value < 1]
        if not self.look_ahead or min(self.look_ahead) < 0:
            faults += [f"look_ahead {list(self.look_ahead)}, expected at least one number of steps, each 0 or more"]
        if self.validation_steps < 0:
            faults += [f"validation_steps {self.validation_steps}, expected 0 or more"]
        if faults:
            raise SettingError(f"received episodes with {'; '.join(faults)}; change model.episodes")


@dataclass(frozen=True)
class Member:
    """A teacher of the zoo with its images at hand.

    Args:
        calibration: what a student is refitted on.
        train: the training images, which all teachers of a data set share; ``places`` are those of the steps.
        held_out: what students are judged on.
        weights: the teacher's, as `lightning_modules.resuming.hash_of` tells them apart.
    """

    case: Case
    calibration: Tensor
    train: Tensor
    places: Tensor
    held_out: Tensor
    weights: str


@dataclass(frozen=True)
class Entry:
    """One row of the zoo's index."""

    name: str
    folder: Path
    data: str
    split: str


def read_index(zoo: Path, teachers: Sequence[str] = (), leave_out: str | None = None) -> list[Entry]:
    """The teachers of ``zoo.csv`` that meta-training may read: those of the splits ``train`` and ``validation``.

    Columns: name, data and split; each teacher is a folder beside the file.

    Args:
        teachers: names of those that take part; empty: all.
        leave_out: the one whose split becomes `LEFT_OUT`. With one left out there need be no teacher to validate on.

    Raises:
        DataError: no index, one without a column, an unknown split, or no teacher to train or to validate on; a name
            that is not in the zoo or that is held out. Indices from before there was the split ``validation`` are
            refused by this.
    """
    path = zoo / "zoo.csv"
    if not path.is_file():
        raise DataError(f"received {zoo} without zoo.csv; expected a zoo; run python -m lightning_modules.zoo first")
    rows = [
        Entry(row["name"], path.parent / row["name"], row["data"], row["split"])
        for row in rows_of(path, ("name", "data", "split"))
    ]
    if unknown := sorted({row.split for row in rows} - set(SPLITS)):
        raise DataError(
            f"received {path} with split {', '.join(unknown)}; expected {', '.join(SPLITS)}; mend the zoo's config and "
            "run python -m lightning_modules.zoo again"
        )
    rows = [row for row in rows if row.split != "heldout"]
    _require_names(path, rows, teachers, leave_out)
    rows = [row for row in rows if not teachers or row.name in (*teachers, leave_out)]
    rows = [replace(row, split=LEFT_OUT) if row.name == leave_out else row for row in rows]
    for split in ("train", "validation") if leave_out is None else ("train",):
        if not any(row.split == split for row in rows):
            raise DataError(
                f"received {path} without a teacher of split '{split}'{' among those named' if teachers else ''}; "
                "expected at least one; run python -m lightning_modules.zoo again with a config that has one (nothing "
                "that is there is trained anew)"
            )
    return rows


def _require_names(path: Path, rows: Sequence[Entry], teachers: Sequence[str], leave_out: str | None) -> None:
    """Raises DataError if a name is not one of those that meta-training may read."""
    asked = [*teachers, *([] if leave_out is None else [leave_out])]
    known = [row.name for row in rows]
    if unknown := sorted(set(asked) - set(known)):
        raise DataError(
            f"received teachers or leave_out with {', '.join(unknown)}; expected names of {path} that are not held "
            f"out ({', '.join(known)}); correct the names, or build a zoo where they are not held out"
        )
