"""What stands behind the verdict's means: every network at every budget, and how far draws of images lie apart."""

import math
import statistics
from collections.abc import Collection, Iterator

from benchmarks.protocol.gaps import Column, Gaps, Place
from benchmarks.protocol.methods import CLOSED_FORMS, IMAGES, NONE, OUTPUTS, RENORMALIZED
from benchmarks.shared.common import Results, markdown

SHOWN = {
    "no images: hypernet": Column("hypernet", NONE),
    "`--data synthetic`": Column("kfac-synthetic", NONE),
    "`--data noise`": Column(RENORMALIZED, NONE),
    "images: `kfac`, outputs refitted": Column(OUTPUTS),
    "`kfac`": Column("kfac"),
    "hypernet": Column("hypernet"),
    "search": Column("kfac-search"),
}


def place_name(place: Place) -> str:
    """As a budget is called in the tables."""
    return f"{place[0]} {float(place[1]):.0%}"


def closed_form(gaps: Gaps, teacher: str, place: Place) -> float | None:
    """The least gap of the closed forms without images."""
    found = [gaps.of(teacher, place, Column(method, NONE)) for method in CLOSED_FORMS]
    return min((gap for gap in found if gap is not None), default=None)


def sizes(budgets: Results, only: Collection[str] | None = None) -> str:
    """What the budgets are as shares of the teachers, in percent."""
    found: dict[Place, list[float]] = {}
    for row in budgets.rows:
        if row["share"] and (only is None or row["teacher"] in only):
            found.setdefault((row["unit"], row["level"]), []).append(100 * float(row["share"]))
    lines = [
        [place_name(place), str(len(shares)), *(f"{f(shares):.1f}" for f in (statistics.median, min, max))]
        for place, shares in found.items()
    ]
    return markdown(("budget", "teachers", "median", "least", "most"), lines) if lines else "no budgets"


def refused(results: Results, only: Collection[str] | None = None) -> str:
    """How often the guard, which judges where there are images, took the analytic student, as generated."""
    found: dict[str, list[bool]] = {}
    for row in results.rows:
        judged = row["method"] == "hypernet" and row["statistics"] == IMAGES and row["steps"] == "0"
        if judged and row.get("strength") and (only is None or row["teacher"] in only):
            found.setdefault(place_name((row["unit"], row["level"])), []).append(float(row["strength"]) == 0)
    every = {**found, "all": [one for taken in found.values() for one in taken]}
    lines = [[place, str(sum(taken)), str(len(taken))] for place, taken in every.items()]
    return markdown(("budget", "refused", "students"), lines) if found else "no rows"


def every_network(gaps: Gaps) -> str:
    """Top-1 in percent as generated: networks and budgets down, what they are generated from across."""
    lines = []
    for teacher in gaps.teachers:
        top1 = gaps.top1[teacher]
        for place in gaps.places:
            found = [closed_form(gaps, teacher, place), *(gaps.of(teacher, place, c) for c in SHOWN.values())]
            if any(gap is not None for gap in found):
                cells = ["-" if gap is None else f"{100 * (top1 - gap):.1f}" for gap in found]
                lines.append([f"{teacher} ({100 * top1:.1f})", place_name(place), *cells])
    return markdown(("network (top-1)", "size", "no images: closed form", *SHOWN), lines) if lines else "no rows"


def over_draws(gaps: Gaps) -> str:
    """Standard deviation of top-1 in points over the draws of images, pooled over networks and units, by level."""
    levels = sorted({level for _, level in gaps.places}, key=float, reverse=True)
    lines = []
    for column in gaps.columns:
        pooled = [_pooled(_spreads(gaps, column, level)) for level in levels]
        if column.steps == 0 and any(not math.isnan(value) for value in pooled):
            cells = ["-" if math.isnan(value) else f"{100 * value:.1f}" for value in pooled]
            lines.append([column.method, column.statistics, *cells])
    header = ("method", "statistics", *(f"{float(level):.0%}" for level in levels))
    return markdown(header, lines) if lines else "no method with several draws"


def _spreads(gaps: Gaps, column: Column, level: str) -> Iterator[tuple[float, int]]:
    """Variance and degrees of freedom of each network and unit."""
    for teacher in gaps.teachers:
        for place in (place for place in gaps.places if place[1] == level):
            found = list(gaps.seeds(teacher, place, column).values())
            if len(found) > 1:
                yield statistics.variance(found), len(found) - 1


def _pooled(spreads: Iterator[tuple[float, int]]) -> float:
    parts = list(spreads)
    degrees = sum(count for _, count in parts)
    return math.sqrt(sum(variance * count for variance, count in parts) / degrees) if degrees else math.nan
