"""The figures of the held-out protocol, from its table alone."""

from pathlib import Path

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.protocol.gaps import Column, Gaps, Place, mean
from benchmarks.protocol.methods import IMAGES, NONE
from benchmarks.shared.common import Results
from benchmarks.shared.figures import COLOURS, save


def distilled_figure(results: Results, path: Path) -> None:
    """A panel for each budget: mean gap over teachers against the steps of distillation, a line for each method."""
    gaps = Gaps(results)
    levels = list(dict.fromkeys(level for _, level in gaps.places))
    units = list(dict.fromkeys(unit for unit, _ in gaps.places))
    figure = Figure((4.2 * max(1, len(levels)), 3.4 * max(1, len(units))), layout="constrained")
    panels = figure.subplots(max(1, len(units)), max(1, len(levels)), squeeze=False)
    for line, unit in zip(panels, units, strict=False):
        for axes, level in zip(line, levels, strict=False):
            _panel(axes, gaps, (unit, level))
            axes.set(
                title=f"{unit}: kfac keeps {float(level):.0%}", xlabel="steps of distillation", ylabel="gap, points"
            )
    handles, labels = panels[0][0].get_legend_handles_labels()
    if handles:
        panels[0][0].legend(handles, labels, fontsize=6, loc="upper right")
    save(figure, path)


def _panel(axes: Axes, gaps: Gaps, place: Place) -> None:
    columns = [column for column in gaps.columns if column.statistics == IMAGES]
    for name in dict.fromkeys(column.method for column in columns):
        steps = sorted(column.steps for column in columns if column.method == name)
        points = [_mean(gaps, place, Column(name, IMAGES, count)) for count in steps]
        axes.errorbar(steps, *_bars(points), fmt="o-", markersize=3, linewidth=1, color=colour(name), label=name)
    axes.set_xscale("symlog", linthresh=20)
    axes.grid(alpha=0.3)


def free_figure(results: Results, path: Path) -> None:
    """Without images: mean gap over teachers for each budget, a bar for each method, `kfac` with images beside."""
    gaps = Gaps(results)
    columns = [c for c in gaps.columns if c.statistics == NONE] + [c for c in gaps.columns if c == Column("kfac")]
    figure = Figure((9, 4), layout="constrained")
    axes = figure.subplots()
    for index, column in enumerate(columns):
        places = [place + index / (len(columns) + 1) for place in range(len(gaps.places))]
        height, error = _bars([_mean(gaps, place, column) for place in gaps.places])
        free = column.statistics == NONE
        label = column.method if free else f"{column.method}, images"
        bars = axes.bar(places, height, 1 / (len(columns) + 1), yerr=error, color=colour(column.method), label=label)
        for bar in bars:
            bar.set_hatch("" if free else "//")
    axes.set_xticks(range(len(gaps.places)), [f"{unit} {float(level):.0%}" for unit, level in gaps.places])
    axes.set(ylabel="gap, points", title="nothing but weights, nothing trained")
    axes.grid(alpha=0.3, axis="y")
    if columns:
        axes.legend(fontsize=6, loc="upper right")
    save(figure, path)


def _mean(gaps: Gaps, place: Place, column: Column) -> tuple[float, float]:
    found = mean([gap for (gap,) in gaps.together([place], [column]).values()])
    return 100 * found.value, 100 * found.error


def _bars(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Heights and errors; an error that is not known is not drawn."""
    return [value for value, _ in points], [0.0 if error != error else error for _, error in points]  # noqa: PLR0124


def colour(name: str) -> str | tuple[float, float, float, float]:
    """As in the other figures; methods that stand in no other have one by their name."""
    if name in COLOURS:
        return COLOURS[name]
    return colormaps["tab20b"](sum(name.encode()) % 20)
