"""The budgets of the held-out protocol: shares at which `kfac` keeps a given part of the teacher's accuracy.

Refitted in the output factor alone, as when the protocol was written (``kfac-outputs`` in the table).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.protocol.subject import Entry, Sizes, Subject
from benchmarks.shared.common import Results, fidelity, say
from hypercompress.allocation import least_share
from hypercompress.compress import finish
from hypercompress.specs import COUNTED, Budget, Unit

LEVELS = (0.95, 0.8, 0.5)  # of the teacher's accuracy
TRIES, TOLERANCE = 10, 0.01
KEY = ("teacher", "unit", "level")
MADE_OF = ("weights", "settings")


@dataclass(frozen=True)
class Cell:
    """A budget of one teacher by its place in the protocol; ``share`` is ``None`` if there is no such budget."""

    unit: Unit
    level: float
    share: float | None

    @property
    def budget(self) -> Budget:
        assert self.share is not None
        return Budget(params=self.share) if self.unit is Unit.PARAMS else Budget(macs=self.share)


def bisect(kept: Callable[[float], float], least: float, level: float) -> tuple[float | None, float]:
    """The share whose student keeps nearest to ``level``, and what it keeps; no share if the smallest keeps more.

    Args:
        kept: accuracy of the student of a share, as a part of the teacher's; rising with the share but for noise.
        least: the smallest share.
        level: in (0, 1).
    """
    found = {least: kept(least)}
    if found[least] >= level:
        return None, found[least]
    low, high = least, 1.0
    for _ in range(TRIES):
        share = math.sqrt(low * high)
        found[share] = kept(share)
        if abs(found[share] - level) <= TOLERANCE:
            break
        low, high = (low, share) if found[share] > level else (share, high)
    return min(found.items(), key=lambda point: abs(point[1] - level))


def find_budgets(
    entry: Entry, sizes: Sizes, subject: Callable[[], Subject], results: Results, units: Sequence[Unit] = COUNTED
) -> None:
    """Every row of a teacher that is missing, at all levels; one student serves all levels of a unit."""
    made_of = {"weights": entry.weights, "settings": str(sizes)}
    for unit in units:
        rows = [{"teacher": entry.name, "unit": str(unit), "level": level, **made_of} for level in LEVELS]
        if all(results.has(row) for row in rows):
            continue
        kept, least = _measure(subject(), unit)
        for row, level in zip(rows, LEVELS, strict=True):
            share, part = bisect(kept, least, level)
            note = "" if share is not None else f"the smallest student, {least:.4f}, keeps more"
            results.add({**row, "share": share, "kept": part, "least_share": least, "note": note})
            say(f"{entry.name}, {unit}, {level:.0%}: share {share or math.nan:.4f}, keeps {part:.1%} {note}")


def _measure(subject: Subject, unit: Unit) -> tuple[Callable[[float], float], float]:
    """What `kfac` keeps at a share, each share measured once, and the smallest share."""
    plan, known = subject.plan(0), dict[float, float]()

    def kept(share: float) -> float:
        if share not in known:
            student = finish(plan, Cell(unit, 0.0, share).budget, architecture=subject.architecture, both=False)
            found = fidelity(subject.teacher, student, subject.validation)
            assert found.top1_student is not None  # zoos are labelled
            known[share] = found.top1_student / max(found.top1_teacher or 0.0, 1e-9)
        return known[share]

    # Rounded up, so that the smallest student fits for sure.
    return kept, math.ceil(least_share(plan.spec, unit) * 1e6) / 1e6


def cells(entry: Entry, results: Results, units: Sequence[Unit], levels: Sequence[float]) -> list[Cell]:
    """The budgets of a teacher as `find_budgets` wrote them."""
    wanted = {(str(unit), f"{level:g}"): (unit, level) for unit in units for level in levels}
    found = []
    for row in results.rows:
        place = wanted.get((row["unit"], row["level"]))
        if row["teacher"] == entry.name and place is not None:
            found.append(Cell(*place, float(row["share"]) if row["share"] else None))
    return sorted(found, key=lambda cell: (COUNTED.index(cell.unit), -cell.level))
