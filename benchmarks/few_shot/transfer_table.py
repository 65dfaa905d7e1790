"""The transfer benchmark's tables and plot, from its CSV alone."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.figure import Figure

from benchmarks.few_shot.intervals import Estimate, combine, paired
from benchmarks.shared.common import Results, markdown
from benchmarks.shared.figures import save, values

COLOURS = {
    "ncm": "tab:gray",
    "ridge": "black",
    "pixels": "tab:olive",
    "probe": "tab:brown",
    "norm": "tab:blue",
    "lora": "tab:orange",
    "full": "tab:purple",
    "adapt": "tab:red",
    "adapt-plain": "tab:pink",
    "adapt-all": "tab:green",
    "ridge-views": "dimgray",
    "norm-views": "tab:cyan",
    "lora-views": "gold",
    "full-views": "mediumorchid",
    "adapt-views": "darkred",
    "adapt-all-views": "darkgreen",
    "adapt-levels": "salmon",
    "adapt-default-views": "limegreen",
}
OURS = "adapt-all-views"  # as `hypercompress transfer --steps` is, but for levels, the rate and near tasks


def cells(results: Results, **chosen: object) -> list[Mapping[str, str]]:
    """The blocks with these values."""
    return [row for row in results.rows if all(row[name] == str(value) for name, value in chosen.items())]


def estimate(results: Results, column: str, **chosen: object) -> Estimate | None:
    """A column over all blocks with these values; ``None`` if there are none."""
    rows = cells(results, **chosen)
    return combine(rows, column) if rows else None


def tables(results: Results) -> str:
    """For each backbone and data set: accuracy and gain over ridge by shots, cost of each method."""
    parts = []
    for backbone in values(results, "backbone"):
        for data in dict.fromkeys(row["data"] for row in cells(results, backbone=backbone)):
            parts.append(f"{backbone} on {data}: accuracy, %; in brackets the gain over ridge on the same episodes")
            parts.append(_table(results, backbone, data))
            if differences := _differences(results, backbone, data):
                parts.append(f"{backbone} on {data}: {OURS} minus others on the same episodes, points")
                parts.append(differences)
    return "\n\n".join(parts)


def _table(results: Results, backbone: str, data: str) -> str:
    here = cells(results, backbone=backbone, data=data)
    shots = sorted({int(row["shots"]) for row in here})
    lines = []
    for method, steps in sorted({(row["method"], int(row["steps"])) for row in here}, key=_order):
        chosen = {"backbone": backbone, "data": data, "method": method, "steps": steps}
        rows = cells(results, **chosen)
        cost = [sum(float(row[name]) for row in rows) / len(rows) for name in ("forward", "backward")]
        line = [method, str(steps), " + ".join(f"{number:.4g}" for number in cost)]
        lines.append([*line, *(_cell(results, {**chosen, "shots": k}) for k in shots)])
    header = ("method", "steps", "passes forward + backward", *(f"{k} shots" for k in shots))
    return markdown(header, lines)


def _differences(results: Results, backbone: str, data: str) -> str:
    """Ours against every other method after as many steps; nothing where it has no steps."""
    here = cells(results, backbone=backbone, data=data)
    shots = sorted({int(row["shots"]) for row in here})
    lines = []
    for method, steps in sorted({(row["method"], int(row["steps"])) for row in here}, key=_order):
        line = []
        for k in shots:
            chosen = {"backbone": backbone, "data": data, "steps": steps, "shots": k}
            ours, others = (cells(results, **chosen, method=name) for name in (OURS, method))
            found = None if method == OURS else paired(ours, others, "accuracy")
            line.append(
                "-" if found is None else f"{100 * found.mean:+.1f} ± {100 * found.interval:.1f}; {found.count}"
            )
        if any(cell != "-" for cell in line):
            lines.append([method, str(steps), *line])
    return markdown(("method", "steps", *(f"{k} shots" for k in shots)), lines) if lines else ""


def _order(cell: tuple[str, int]) -> tuple[int, int]:
    return cell[1], list(COLOURS).index(cell[0])


def _cell(results: Results, chosen: Mapping[str, object]) -> str:
    right, gain = (estimate(results, column, **chosen) for column in ("accuracy", "gain"))
    if right is None or gain is None:
        return "-"
    return f"{right} ({100 * gain.mean:+.1f} ± {100 * gain.interval:.1f}; {right.count})"


def figure(results: Results, path: Path) -> None:
    """A column for each backbone and data set: accuracy, and the gain over ridge on the same episodes; without steps
    (solid), and after the number of steps that most methods have there, the larger of two (dashed).
    """
    pairs = list(dict.fromkeys((row["backbone"], row["data"]) for row in results.rows))
    if not pairs:
        return
    drawing = Figure((1 + 4.2 * len(pairs), 8.5), layout="constrained")
    axes = drawing.subplots(2, len(pairs), squeeze=False)
    known: dict[str, Artist] = {}
    for place, (backbone, data) in enumerate(pairs):
        here = cells(results, backbone=backbone, data=data)
        taken = {(row["method"], int(row["steps"])) for row in here}
        counted = Counter(steps for _, steps in taken if steps)
        common = max(counted, key=lambda steps: (counted[steps], steps), default=0)
        for method, steps in sorted(taken, key=_order):
            if steps not in {0, common}:
                continue
            chosen = {"backbone": backbone, "data": data, "method": method, "steps": steps}
            label = f"{method}, {steps} steps" if steps else method
            for axis, column in ((axes[0][place], "accuracy"), (axes[1][place], "gain")):
                points = _points(results, column, chosen, here)
                if points and not (column == "gain" and method == "ridge"):
                    style = {"fmt": "s--" if steps else "o-", "color": COLOURS[method], "markersize": 3, "linewidth": 1}
                    known.setdefault(label, axis.errorbar(*zip(*points, strict=True), **style))
        axes[0][place].set(title=f"{backbone} on {data}", ylabel="accuracy, %")
        axes[1][place].set(ylabel="gain over ridge, points", xlabel="images of each class")
        axes[1][place].axhline(0, color="black", linewidth=0.8)
        for axis in (axes[0][place], axes[1][place]):
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:g}")
            axis.grid(alpha=0.3)
    drawing.legend(known.values(), known.keys(), loc="outside lower center", ncols=2 * len(pairs), fontsize=7)
    save(drawing, path)


def _points(
    results: Results, column: str, chosen: Mapping[str, object], here: Sequence[Mapping[str, str]]
) -> list[tuple[int, float, float]]:
    found = []
    for shots in sorted({int(row["shots"]) for row in here}):
        known = estimate(results, column, **chosen, shots=shots)
        if known is not None:
            found.append((shots, 100 * known.mean, 100 * known.interval if math.isfinite(known.interval) else 0.0))
    return found
