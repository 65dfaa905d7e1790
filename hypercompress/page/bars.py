"""Parameters of every layer before and after, as geometry of horizontal bars."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from hypercompress.page.words import changed, counted, fitted, layer_name

WIDTH = 760.0
LEFT, RIGHT = 244.0, 556.0  # where bars begin, and the longest one ends
LABEL_CELLS, VALUE_CELLS = 35, 29  # characters of 11 px monospace, 0.61 em each, left and right of the bars
TOP, ROW = 30.0, 18.0  # below the legend; from one bar to the next
MOST = 40  # bars of one plot: as many as fit on a printed page
SMALL = 0.01  # of all parameters: below it, layers without a matrix share one bar


@dataclass(frozen=True)
class Bar:
    """One layer, or several small ones: where it stands, how long its two bars are, and what is written beside them."""

    y: float
    label: str
    title: str
    value: str
    before: float
    after: float


@dataclass(frozen=True)
class BarPlot:
    """At most `MOST` bars."""

    title: str
    height: float
    bars: tuple[Bar, ...]


def bar_plots(rows: Sequence[dict[str, Any]]) -> list[BarPlot]:
    """As many plots as it takes, all to one scale; bars in the order of the layers.

    Norms and other small layers without multiply-accumulates are one bar, the last: so many slivers would say nothing.
    """
    entries = _entries(rows)
    if not entries:
        return []
    longest = max(max(before, after) for _, before, after in entries) or 1
    count = ceil(len(entries) / MOST)
    size = ceil(len(entries) / count)
    plots = []
    for start in range(0, len(entries), size):
        part = entries[start : start + size]
        where = f", bars {start + 1} to {start + len(part)} of {len(entries)}" if count > 1 else ""
        bars = tuple(_bar(TOP + ROW * index, *entry, longest) for index, entry in enumerate(part))
        plots.append(BarPlot(f"Parameters of each layer before and after{where}", TOP + ROW * len(part) + 4, bars))
    return plots


def _entries(rows: Sequence[dict[str, Any]]) -> list[tuple[str, int, int]]:
    """Name, parameters before and after; the small ones together at the end."""
    whole = sum(counted(row["params_before"]) for row in rows)
    entries: list[tuple[str, int, int]] = []
    others: list[tuple[str, int, int]] = []
    for row in rows:
        entry = (layer_name(row), row["params_before"], counted(row["params_after"]))
        alone = counted(row["macs_before"]) or row["params_before"] > SMALL * whole
        (entries if alone else others).append(entry)
    if others:
        total = (sum(before for _, before, _ in others), sum(after for *_, after in others))
        entries.append((f"{len(others)} small ones without MACs", *total))
    return entries


def _bar(y: float, name: str, before: int, after: int, longest: int) -> Bar:
    value, full = changed(before, after), RIGHT - LEFT
    return Bar(
        y=y,
        label=fitted(name, LABEL_CELLS),
        title=f"{name}: {value} parameters",
        value=fitted(value, VALUE_CELLS),
        before=round(full * (before / longest), 2),
        after=round(full * (after / longest), 2),
    )
