"""Gaps of the held-out table: the teacher's accuracy minus the student's, and what is compared of them."""

import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.shared.common import Results

Place = tuple[str, str]  # unit and level, as they stand in the table


@dataclass(frozen=True)
class Column:
    """What stands beside the budget in a comparison."""

    method: str
    statistics: str = "images"
    steps: int = 0


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error, which is not a number where there is one teacher or one seed."""

    value: float
    error: float

    def text(self, digits: int = 2, scale: float = 1.0) -> str:
        if math.isnan(self.value):
            return "-"
        error = "" if math.isnan(self.error) else f" ± {self.error * scale:.{digits}f}"
        return f"{self.value * scale:.{digits}f}{error}"


NOTHING = Estimate(math.nan, math.nan)


class Gaps:
    """Gaps by teacher, budget, column and seed; rows without a student are left out.

    Args:
        results: the table ``heldout.csv``.
        only: these teachers; ``None``: all.
    """

    def __init__(self, results: Results, only: Collection[str] | None = None) -> None:
        self.top1: dict[str, float] = {}  # of the teachers
        self._found: dict[tuple[str, Place, Column], dict[int, float]] = {}
        for row in results.rows:
            if row["top1"] and (only is None or row["teacher"] in only):
                column = Column(row["method"], row["statistics"], int(row["steps"]))
                key = (row["teacher"], (row["unit"], row["level"]), column)
                self.top1[row["teacher"]] = float(row["top1_teacher"])
                gap = float(row["top1_teacher"]) - float(row["top1"])
                self._found.setdefault(key, {})[int(row["seed"])] = gap
        self.teachers = list(dict.fromkeys(teacher for teacher, _, _ in self._found))
        places = dict.fromkeys(place for _, place, _ in self._found)
        self.places = sorted(places, key=lambda place: (place[0] != "params", -float(place[1])))
        self.columns = list(dict.fromkeys(column for _, _, column in self._found))

    def seeds(self, teacher: str, place: Place, column: Column) -> Mapping[int, float]:
        """The gap of each seed."""
        return self._found.get((teacher, place, column), {})

    def of(self, teacher: str, place: Place, column: Column) -> float | None:
        """The mean over seeds."""
        found = self.seeds(teacher, place, column)
        return statistics.fmean(found.values()) if found else None

    def together(self, places: Iterable[Place], columns: Sequence[Column]) -> dict[str, list[float]]:
        """For each teacher the columns' means over those of the budgets where all columns have a student."""
        chosen, found = list(places), {}
        for teacher in self.teachers:
            lines = [[self.of(teacher, place, column) for column in columns] for place in chosen]
            whole = [[gap for gap in line if gap is not None] for line in lines if None not in line]
            if whole:
                found[teacher] = [statistics.fmean(column) for column in zip(*whole, strict=True)]
        return found

    def worse(self, teacher: str, place: Place, ours: Column, theirs: Column) -> Estimate:
        """How much larger our gap is, over the seeds that both have."""
        a, b = self.seeds(teacher, place, ours), self.seeds(teacher, place, theirs)
        return mean([a[seed] - b[seed] for seed in a if seed in b])


def mean(values: Sequence[float]) -> Estimate:
    """Mean and standard error."""
    if not values:
        return NOTHING
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return Estimate(statistics.fmean(values), error)


def ratio(pairs: Sequence[tuple[float, float]]) -> Estimate:
    """Ratio of the sums, with the jackknife's standard error (Efron & Tibshirani 1993, eq. 11.5).

    Args:
        pairs: numerator and denominator of each teacher. Where the denominators' sum is not above 0 there is no ratio.
    """
    whole = _ratio(pairs)
    parts = [_ratio([*pairs[:i], *pairs[i + 1 :]]) for i in range(len(pairs))]
    if len(parts) < 2 or any(math.isnan(part) for part in parts):
        return Estimate(whole, math.nan)
    centre = statistics.fmean(parts)
    spread = sum((part - centre) ** 2 for part in parts) * (len(parts) - 1) / len(parts)
    return Estimate(whole, math.sqrt(spread))


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
    above, below = (sum(side) for side in zip(*pairs, strict=True)) if pairs else (0.0, 0.0)
    return above / below if below > 0 else math.nan
