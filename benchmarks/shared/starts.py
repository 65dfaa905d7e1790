"""Students that distillation starts from, and the images that it takes, for benchmarks of how it goes on."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from torch import nn

from benchmarks.shared.common import Set, read_set, say
from benchmarks.shared.distillation import Recipe, orders
from hypercompress.architecture import Architecture
from hypercompress.compress import finish
from hypercompress.errors import BudgetError
from hypercompress.models import load_model
from hypercompress.preparation import Plan, prepare
from hypercompress.specs import Budget

TRAIN, CALIBRATION, TEST, BATCH, STATISTICS = 12_000, 1024, 2000, 128, 64
BANDS = (0.003, 0.03, 0.3, float("inf"))  # of the KL before the steps, in nats


def log_ratio(row: Mapping[str, str]) -> float:
    """Logarithm of the KL after the steps over that before them; what is below 1e-6 nats is rounding."""
    return math.log(max(float(row["kl"]), 1e-6) / max(float(row["kl_start"]), 1e-6))


def told(ratios: Sequence[float]) -> str:
    """Geometric mean of such ratios, and how many students are further away than they were; a dash for none."""
    if not ratios:
        return "-"
    return f"{math.exp(fmean(ratios)):.2f} ({sum(ratio > 0 for ratio in ratios)} worse)"


@dataclass(frozen=True)
class Starts:
    """A teacher, what was measured of it, and its images.

    Args:
        first: the batch of the first step.
    """

    name: str
    teacher: nn.Module
    architecture: Architecture | None
    plan: Plan
    train: Set
    test: Set
    first: Set

    def start(self, share: float) -> nn.Module | None:
        """The `kfac` student of so many of the parameters as ``generate`` gives it; ``None``: there is none."""
        try:
            return finish(self.plan, Budget(params=share), architecture=self.architecture).model
        except BudgetError as error:
            say(f"{self.name}: {error}")
            return None


def open_starts(folder: Path, data: str, images: int | None = None) -> Starts:
    """Read a teacher's folder and its images, and measure the statistics on 1,024 of them, or on all.

    Args:
        images: to train on, at most; `TRAIN` if ``None``.
    """
    torch.manual_seed(0)
    teacher, architecture = load_model(str(folder))
    limit = TRAIN if images is None else images
    train = read_set(teacher, data, train=True, limit=limit, shuffled=True)  # the first of them give the statistics
    test = read_set(teacher, data, train=False, limit=TEST)
    first = train.subset(orders(len(train), Recipe("adamw", 1.0, steps=1, batch=BATCH), 0)[0])
    measured = train.images[:CALIBRATION]
    # In eight batches or more, of which two are held out.
    plan = prepare(teacher, measured.split(min(STATISTICS, max(1, len(measured) // 8))), "kfac")
    return Starts(folder.name, teacher, architecture, plan, train, test, first)
