"""``generate --pareto``: predicted KL against size for every budget at once; one student is built, to measure by."""

import csv
import io
from argparse import Namespace
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from hypercompress.allocation import ParetoPoint, pareto
from hypercompress.cli import checks
from hypercompress.cli.terminal import Terminal
from hypercompress.data import expanded
from hypercompress.errors import GeneratorError, HypercompressError
from hypercompress.generator import ANALYTIC
from hypercompress.preparation import Plan
from hypercompress.probe import kl_scale
from hypercompress.saved.whole_file import refuse_existing_file, whole_file
from hypercompress.specs import COUNTED, KlScale, Unit

GENERATOR = "kfac"  # the only one whose energies are nats; a hypernetwork starts from it
CSV, PNG = "pareto.csv", "pareto.png"
SHOWN = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # rows of the table
KEPT = 500  # points of each curve in the files; large networks have a hundred thousand

Curves = Mapping[Unit, Sequence[ParetoPoint]]


@dataclass(frozen=True)
class TradeOff:
    """The curves of both counted units, their predicted KL already multiplied by ``scale.best``, as measured."""

    curves: Curves
    scale: KlScale


def folder(arguments: Namespace) -> Path:
    """Where the files go: the folder given, else the one that OUT lies in, else the current one."""
    if arguments.pareto:
        return expanded(arguments.pareto)
    return Path() if arguments.out is None else Path(arguments.out.parent)


def check(arguments: Namespace) -> None:
    """There are data, energies in nats and room for the files.

    Raises:
        GeneratorError, ArtefactError: not so.
    """
    if arguments.pareto is None:
        return
    where = folder(arguments)
    checks.require(
        lambda: _measured(arguments),
        lambda: _in_nats(arguments),
        lambda: checks.writable(where),
        lambda: refuse_existing_file(where / CSV, arguments.overwrite),
        lambda: refuse_existing_file(where / PNG, arguments.overwrite),
    )


def _measured(arguments: Namespace) -> None:
    if arguments.data is None:
        raise HypercompressError(
            "received --pareto without data; expected images to predict the KL from; pass --data DATA"
        )
    if checks.unlike(arguments):
        raise HypercompressError(
            "received --pareto with images of another kind than the model's own; expected some to predict the KL from; "
            "pass --data DATA without --renormalize"
        )


def _in_nats(arguments: Namespace) -> None:
    if arguments.generator in ANALYTIC and not ANALYTIC[arguments.generator].nats:
        raise GeneratorError(
            f"received --pareto with --generator {arguments.generator}, whose energies are no nats of KL; expected "
            "auto, hypernet or kfac; drop one of the two options"
        )


def measured(plan: Plan, *, refit: bool = True) -> TradeOff:
    """Every budget at once, and one student to say how far the predictions are off; ``refit``: as students will be."""
    generator = ANALYTIC[GENERATOR]
    known = generator.directions(plan.spec, plan.sketches)
    energies, inputs = generator.energies(known.outputs), generator.energies(known.inputs)
    scale = kl_scale(plan, known, refit=refit)
    curves = {unit: thinned(cleaned(pareto(plan.spec, energies, unit, inputs), scale.best)) for unit in COUNTED}
    return TradeOff(curves, scale)


def write(trade_off: TradeOff, where: Path, overwrite: bool, terminal: Terminal) -> dict[str, Any]:
    """Print the table, write both files and return all of it for ``--json``."""
    curves = trade_off.curves
    with ExitStack() as files:  # both are moved in once both are written
        files.enter_context(whole_file(where / CSV, overwrite)).write_bytes(as_csv(curves).encode())
        files.enter_context(whole_file(where / PNG, overwrite)).write_bytes(as_png(curves))
    terminal.show(as_table(curves))
    terminal.note("predicted KL", f"times {trade_off.scale.best:.2f}, as one student was measured")
    terminal.show(f"saved: {where / CSV}, {where / PNG}")
    points = {str(unit): [vars(point) for point in curve] for unit, curve in curves.items()}
    return {"csv": str(where / CSV), "png": str(where / PNG), "kl_scale": trade_off.scale.best, **points}


def cleaned(points: Sequence[ParetoPoint], scale: float) -> list[ParetoPoint]:
    """The KL times ``scale``; what rounding leaves of one that is zero becomes zero."""
    noise = 1e-12 * points[0].predicted_kl
    return [ParetoPoint(p.share, p.predicted_kl * scale if p.predicted_kl > noise else 0.0) for p in points]


def best_within(points: Sequence[ParetoPoint], share: float) -> ParetoPoint | None:
    """The last point whose share is at most ``share``; ``None`` below the first."""
    index = bisect_right(points, share + 1e-9, key=lambda point: point.share)
    return points[index - 1] if index else None


def thinned(points: Sequence[ParetoPoint], kept: int = KEPT) -> list[ParetoPoint]:
    """At most ``kept`` points, evenly spread over the share; the first and the last are among them."""
    if len(points) <= kept:
        return list(points)
    inner = np.linspace(points[0].share, points[-1].share, kept)[1:-1]
    found = [points[0], *(best_within(points, share) for share in inner), points[-1]]
    return list(dict.fromkeys(point for point in found if point is not None))


def as_table(curves: Curves) -> Table:
    """Predicted KL of the best student within each share; a dash where no rank is low enough."""
    table = Table("budget", *(f"predicted KL, --{unit} (nats)" for unit in curves))
    for share in SHOWN:
        found = [best_within(points, share) for points in curves.values()]
        if any(found):
            table.add_row(f"{share:g}", *("-" if point is None else f"{point.predicted_kl:.4g}" for point in found))
    return table


def as_csv(curves: Curves) -> str:
    """Columns ``unit``, ``share`` (of the teacher) and ``predicted_kl`` (nats)."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("unit", "share", "predicted_kl"))
    writer.writerows((unit, point.share, point.predicted_kl) for unit, points in curves.items() for point in points)
    return text.getvalue()


def as_png(curves: Curves) -> bytes:
    """Both curves in one picture, the KL on a logarithmic axis."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for unit, points in curves.items():
        shown = [point for point in points if point.predicted_kl > 0]  # the teacher itself is at minus infinity
        axes.plot([p.share for p in shown], [p.predicted_kl for p in shown], drawstyle="steps-post", label=str(unit))
    axes.set(xlabel="share of the teacher", ylabel="predicted KL (nats)", yscale="log", xlim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    return picture.getvalue()
