"""Ranks as shares of full rank in network order, as geometry of columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from hypercompress.page.words import counted, layer_name
from hypercompress.specs import Status

WIDTH, HEIGHT = 760.0, 268.0
LEFT, RIGHT, TOP, BOTTOM = 48.0, 756.0, 34.0, 224.0  # of the plotted area
PITCH = 30.0  # from one column to the next, at most
GAP = 0.2  # of it left free
LABELS = 20  # below the columns, about


@dataclass(frozen=True)
class Column:
    """One layer. ``dense``: it could have been factored and was not; ``mark``: height of its input rank, if any."""

    x: float
    y: float
    width: float
    height: float
    title: str
    dense: bool
    mark: float | None


@dataclass(frozen=True)
class RankPlot:
    """All layers that have a rank, and the lines and words around them."""

    columns: tuple[Column, ...]
    ticks: tuple[tuple[float, str], ...]
    grid: tuple[tuple[float, str], ...]


def rank_plot(rows: Sequence[dict[str, Any]]) -> RankPlot | None:
    """A column for each layer that has or could have factors; ``None`` without one.

    Reports that are older do not say what the full rank is: their layers have no column.
    """
    found = [(number, row) for number, row in enumerate(rows, start=1) if _has_rank(row)]
    if not found:
        return None
    pitch = min(PITCH, (RIGHT - LEFT) / len(found))
    columns = tuple(_column(LEFT + pitch * index, pitch, row) for index, (_, row) in enumerate(found))
    step = ceil(len(found) / LABELS)
    ticks = tuple((round(c.x + c.width / 2, 2), str(number)) for c, (number, _) in zip(columns, found, strict=True))
    grid = tuple((_height(level / 4), f"{level / 4:.0%}") for level in range(5))
    return RankPlot(columns, ticks[::step], grid)


def _has_rank(row: dict[str, Any]) -> bool:
    return bool(row.get("full_rank")) and row["status"] in (Status.FACTORED, Status.KEPT)


def _column(x: float, pitch: float, row: dict[str, Any]) -> Column:
    rank, full = row["rank"], counted(row["full_rank"])
    inner, channels = row.get("input_rank"), row.get("full_input_rank")
    dense = rank is None
    top = _height(1.0 if dense else counted(rank) / full)
    title = f"{layer_name(row)}: " + ("dense" if dense else f"rank {rank:,} of {full:,}")
    mark = None
    if inner and channels:
        mark = _height(counted(inner) / counted(channels))
        title += f", input rank {inner:,} of {channels:,}"
    width = pitch * (1 - GAP)
    return Column(round(x + pitch * GAP / 2, 2), top, round(width, 2), round(BOTTOM - top, 2), title, dense, mark)


def _height(share: float) -> float:
    """Where a share is on the page; beyond full rank there is nothing."""
    return round(BOTTOM - (BOTTOM - TOP) * min(share, 1.0), 2)
