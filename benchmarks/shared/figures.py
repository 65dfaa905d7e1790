"""Figures and tables of the benchmarks, from their CSVs alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from benchmarks.shared.common import Results, markdown, spread
from hypercompress.allocation import ParetoPoint
from hypercompress.fidelity import Fidelity

COLOURS = {
    "svd": "tab:gray",
    "whitened": "tab:orange",
    "kfac": "tab:blue",
    "hypernet": "tab:red",
    "prior": "tab:green",
    "random": "tab:brown",
    "torch-pruning": "tab:purple",
    "teacher": "black",
}


def values(results: Results, column: str) -> list[str]:
    """The different values of a column, in order of appearance."""
    return list(dict.fromkeys(row[column] for row in results.rows))


def curve(axes: Axes, results: Results, name: str, data: str, column: str, scale: float = 1.0) -> None:
    """One generator's mean over seeds against the share, with the range as a band; dashed without data."""
    rows = [row for row in results.rows if row["generator"] == name and row["data"] == data and row[column]]
    points = []
    for share in sorted({float(row["share"]) for row in rows}):
        found = [scale * float(row[column]) for row in rows if float(row["share"]) == share]
        points.append((100 * share, sum(found) / len(found), min(found), max(found)))
    if points:
        x, mean, low, high = zip(*points, strict=True)
        label = name + {"images": "", "none": ", no data", "synthetic": ", synthetic images", "noise": ", noise"}[data]
        style = {"images": "o-", "none": "o--", "synthetic": "o:", "noise": "o-."}[data]
        axes.plot(x, mean, style, color=COLOURS[name], label=label, markersize=3)
        axes.fill_between(x, low, high, color=COLOURS[name], alpha=0.2, linewidth=0)


def curves(axes: Axes, results: Results, column: str, scale: float = 1.0) -> None:
    """All generators, with and without data."""
    for data in values(results, "data"):
        for name in (name for name in COLOURS if name in values(results, "generator")):
            curve(axes, results, name, data, column, scale)
    axes.set_xscale("log")
    axes.set_xlabel("parameters of the factored layers kept, %")
    percent(axes)
    axes.grid(alpha=0.3)


def save(figure: Figure, path: Path) -> None:
    """Write a PNG without a date, so that equal numbers give equal files."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def resnet18_figure(table: Results, after: Results, path: Path) -> None:
    """Left: accuracy as generated. Right: before and after distillation, against size."""
    figure = Figure((11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    curves(left, table, "top1", 100)
    teacher = [100 * float(row["top1_teacher"]) for row in (*table.rows, *after.rows)]
    for axes in (left, right):
        if teacher:
            axes.axhline(teacher[0], color="black", linewidth=0.8, label="teacher")
    left.set(ylabel="top-1 on 10,000 test images, %", title="ResNet-18, Fashion-MNIST: generated, nothing trained")
    left.legend(fontsize=7)
    for name in values(after, "start"):
        rows = [row for row in after.rows if row["start"] == name]
        sizes = [int(row["params"]) for row in rows]
        right.plot(sizes, [100 * float(row["top1"]) for row in rows], "o", color=COLOURS[name], label=name)
        right.plot(sizes, [100 * float(row["top1_start"]) for row in rows], "x", color=COLOURS[name], alpha=0.5)
    right.set(xscale="log", xlabel="parameters", ylabel="top-1, %", title="before (x) and after (o) distillation")
    right.grid(alpha=0.3)
    right.legend(fontsize=7)
    save(figure, path)


def quickstart_figure(
    measured: Mapping[str, Sequence[tuple[float, Fidelity]]],
    predicted: Sequence[ParetoPoint],
    teacher: Fidelity,
    path: Path,
) -> None:
    """Accuracy and KL against size.

    Args:
        measured: by the student's name, (share of the teacher's parameters, fidelity) at one size or several.
        predicted: KL that the additive model predicts for each size.
        teacher: the teacher against itself.
        path: PNG to write.
    """
    figure = Figure((10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    points = [point for point in predicted if point.predicted_kl > 1e-5]
    line = ([100 * point.share for point in points], [point.predicted_kl for point in points])
    right.plot(*line, color="tab:cyan", label="kfac, predicted")
    for name, single in measured.items():
        found = sorted(single, key=lambda point: point[0])
        share, mark = [100 * x for x, _ in found], "o-" if len(found) > 1 else "*"
        colour = COLOURS.get(name, "black")
        left.plot(share, [100 * (f.top1_student or 0) for _, f in found], mark, color=colour, label=name)
        right.plot(share, [f.kl for _, f in found], mark, color=colour, label=name)
    left.axhline(100 * (teacher.top1_student or 0), color="black", linewidth=0.8, label="teacher")
    left.set(ylabel="top-1 on the test images, %", title="accuracy")
    right.set(ylabel="KL(teacher || student), nats", yscale="log", title="KL, measured and predicted")
    for axes in (left, right):
        axes.set(xscale="log", xlabel="parameters, % of the teacher")
        percent(axes)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    save(figure, path)


def percent(axes: Axes) -> None:
    """Plain numbers at 1, 2, 5 of each decade of a logarithmic axis."""
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())


def resnet18_tables(table: Results, after: Results) -> str:
    """The figure's numbers."""
    parts = []
    for data in values(table, "data"):
        columns = ("top1", "top1_generated", "top1_norms") if data != "none" else ("top1",)
        for column, title in zip(columns, ("as given", "as generated", "norms re-estimated"), strict=False):
            parts.append(f"top-1, statistics from: {data}; {title}\n\n{by_share(table, data, column, 2, 100)}")
        parts.append(f"KL in nats, statistics from: {data}; as given\n\n{by_share(table, data, 'kl', 4)}")
    rows = [
        (
            start,
            spread(after.numbers("params", start=start, size=size), 0),
            ", ".join(
                dict.fromkeys(row["recipe"] for row in after.rows if (row["start"], row["size"]) == (start, size))
            ),
            spread(after.numbers("top1_start", start=start, size=size), 2, 100),
            spread(after.numbers("top1", start=start, size=size), 2, 100),
            spread(after.numbers("kl", start=start, size=size), 4),
        )
        for start, size in dict.fromkeys((row["start"], row["size"]) for row in after.rows)
    ]
    header = ("start", "params", "recipe", "before", "top-1", "KL")
    parts.append("after distillation\n\n" + markdown(header, rows))
    teacher = [float(row["top1_teacher"]) for row in table.rows[:1]]
    return "\n\n".join([*parts, f"teacher: {spread(teacher, 2, 100)}"])


def by_share(results: Results, data: str, column: str, digits: int, scale: float = 1.0) -> str:
    """A table with a row for each share and a column for each generator."""
    rows = [row for row in results.rows if row["data"] == data]
    names = [name for name in COLOURS if any(row["generator"] == name for row in rows)]
    shares = sorted({row["share"] for row in rows}, key=float, reverse=True)

    def line(share: str) -> list[str]:
        found = [results.numbers(column, data=data, share=float(share), generator=name) for name in names]
        return [f"{float(share):.2%}", *(spread(numbers, digits, scale) for numbers in found)]

    return markdown(("share", *names), map(line, shares))
