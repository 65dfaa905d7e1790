"""A held-out teacher with its images, cut by use; see docs/heldout.md."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from benchmarks.pilot import kept_out
from benchmarks.shared.common import Set, digest, read_set
from hypercompress.architecture import Architecture
from hypercompress.data.registry import REGISTRY
from hypercompress.errors import DataError
from hypercompress.models import load_model
from hypercompress.preparation import Plan, prepare
from lightning_modules.index import read_rows

STATISTICS_BATCH = 64  # images; the guard gets whole batches


@dataclass(frozen=True)
class Sizes:
    """How many images serve what; each is a bound, met where the data set is large enough.

    Args:
        train: training images that are read at all.
        validation: of them, what budgets and rates are chosen on; a fifth at most.
        calibration: of the others, what each seed draws.
        test: test images.
    """

    train: int = 30_000
    validation: int = 2000
    calibration: int = 1024
    test: int = 10_000

    def __str__(self) -> str:
        return f"{self.train}/{self.validation}/{self.calibration}/{self.test} images"


@dataclass(frozen=True)
class Entry:
    """A held-out row of the zoo: nothing is read yet."""

    name: str
    family: str
    folder: Path
    data: str

    @cached_property
    def weights(self) -> str:
        """Digest of the teacher's weights."""
        return digest(self.folder)


@dataclass(frozen=True)
class Subject:
    """One held-out teacher.

    Args:
        teacher, architecture: the network and how to build it again.
        pool: training images that calibration images are drawn from, and with which students are distilled.
        validation: training images that budgets and rates are chosen on.
        test: images that are measured on, and nothing else.
        calibration: images that a seed draws.
    """

    teacher: nn.Module
    architecture: Architecture | None
    pool: Set
    validation: Set
    test: Set
    calibration: int

    def draw(self, seed: int) -> Set:
        """The calibration images of a seed."""
        order = torch.randperm(len(self.pool), generator=torch.Generator().manual_seed(seed))
        return self.pool.subset(order[: self.calibration])

    def plan(self, seed: int) -> Plan:
        """The teacher with the statistics of a seed; the generator in it does not matter."""
        return prepare(self.teacher, self.draw(seed).images.split(STATISTICS_BATCH), "kfac", seed=seed)


def read_entries(zoo: Path, root: str, names: list[str] | None = None) -> list[Entry]:
    """The held-out teachers of a zoo, in the order of its index.

    Args:
        root: folder of the data sets on this machine.
        names: these only.

    Raises:
        DataError: no index, no held-out teacher, or a name that is none.
    """
    known = read_rows(zoo / "zoo.csv", ("name", "family", "data", "split"))
    rows = {name: row for name, row in known.items() if row["split"] == "heldout"}
    if not rows:
        raise DataError(
            f"received {zoo}, whose zoo.csv has no teacher of split 'heldout'; expected some; run python -m "
            "lightning_modules.zoo --config configs/zoo_large.yaml"
        )
    if unknown := sorted(set(names or ()) - set(rows)):
        raise DataError(
            f"received --teachers {' '.join(unknown)}; expected some of {', '.join(rows)}; others are not held out"
        )
    chosen = {name: row for name, row in rows.items() if not names or name in names}
    return [Entry(name, row["family"], zoo / name, _data(row["data"], root)) for name, row in chosen.items()]


def _data(text: str, root: str) -> str:
    """The data of a zoo's row on this machine, whose data sets may lie elsewhere than where the zoo was trained."""
    name, colon, _ = text.partition(":")
    if name in REGISTRY:
        return f"{name}:{root}" if colon else name
    return text if Path(text).is_dir() else str(Path(root) / Path(text).name)


def open_subject(entry: Entry, sizes: Sizes, device: str = "cpu") -> Subject:
    """Read a teacher and its images, and ask it about all of them."""
    teacher, architecture = load_model(str(entry.folder))
    teacher.to(device)
    train = read_set(teacher, entry.data, train=True, limit=sizes.train)
    test = read_set(teacher, entry.data, train=False, limit=sizes.test)
    pool, validation = kept_out(train, min(sizes.validation, len(train) // 5))
    return Subject(teacher, architecture, pool, validation, test, sizes.calibration)
