"""``report.json``: what was compressed, how small it got, how close it stays, and why each layer is as it is."""

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from rich.console import Console
from rich.table import Column, Table
from torch import nn

from hypercompress.errors import warn
from hypercompress.fidelity import Fidelity
from hypercompress.running.calling import ForwardFn
from hypercompress.running.copying import weights_of
from hypercompress.running.memory import overlapping
from hypercompress.running.outputs import NUMBERS, as_read
from hypercompress.saved.card import calibration, source_line, trained_line, transfer_line
from hypercompress.specs import Budget, Finishing, Generation, LayerSpec, ModelSpec, RankPlan, Refit, Status, Unit

PIPED_WIDTH = 160  # columns of a table that no terminal limits
HELD_OUT = "held-out calibration images"
BEFORE_FINAL_FIT = f"{HELD_OUT}, before the student was made once more of all calibration images"


def params_of(model: nn.Module) -> int:
    """All parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def bytes_of(model: nn.Module) -> int:
    """Bytes of all parameters and buffers, tied ones once; without sparse ones, which no student folder holds."""
    tensors = [t for t in weights_of(model) if t.layout is torch.strided]
    groups, sizes = overlapping(tensors), dict[int, int]()
    for t in tensors:
        sizes[groups[id(t)]] = max(sizes.get(groups[id(t)], 0), t.numel() * t.element_size())
    return sum(sizes.values())


def reading(model: nn.Module, forward_fn: ForwardFn) -> ForwardFn:
    """The ``forward_fn`` with outputs that are read as those of this student's teacher were."""
    report = getattr(model, "report", None)
    told = report if isinstance(report, Mapping) else {}
    return as_read(forward_fn, numbers=told.get("outputs") == NUMBERS, axis=told.get("class_axis"))


def read_before(
    source: Mapping[str, Any], outputs: str = "auto", forward_fn: ForwardFn | None = None
) -> dict[str, Any]:
    """How `prepare` reads the outputs of a student with this report, where nobody says otherwise: as they were."""
    if forward_fn is not None or outputs != "auto":
        return {"outputs": outputs}
    return {"outputs": source.get("outputs", outputs), "class_axis": source.get("class_axis")}


def make_report(  # noqa: PLR0913  (by keyword)
    spec: ModelSpec,
    budget: Budget,
    generation: Generation,
    *,
    teacher_bytes: int,
    student_bytes: int,
    seconds: float,
    fidelity: Fidelity | None = None,
    kl_scale: float = 1.0,
    finishing: Finishing | None = None,
) -> dict[str, Any]:
    """The object of the contract (design 4.1), ready for JSON.

    Args:
        teacher_bytes, student_bytes: parameters and buffers, as stored.
        seconds: wall-clock time of the generation.
        kl_scale: what the predicted KL is multiplied by (`Plan.kl_scale`).
        finishing: what held-out images decided, and what was done since it was built; ``None``: nothing.
    """
    plan, finishing = generation.plan, finishing or Finishing()
    rows = [layer_row(layer, plan, finishing) for layer in spec.layers]
    saved = {unit: sum(r[f"{unit}_before"] - r[f"{unit}_after"] for r in rows) for unit in ("params", "macs")}
    return {
        "teacher": {"params": spec.params, "macs": spec.macs, "bytes": teacher_bytes},
        "student": {"params": spec.params - saved["params"], "macs": spec.macs - saved["macs"], "bytes": student_bytes},
        "budget": {"unit": str(budget.unit), "target": budget.share, "achieved": plan.achieved},
        "predicted_kl": None if plan.predicted_kl is None else plan.predicted_kl * kl_scale,
        "fidelity": fidelity_json(fidelity),
        "measured_on": None if fidelity is None else HELD_OUT,
        "generator": {"name": generation.generator, "strength": generation.strength},
        "seconds": seconds,
        "tilt": finishing.tilt,
        "refitted": str(finishing.refitted),
        "norms": finishing.norms,
        "layers": rows,
    }


def moved_report(transfer: Mapping[str, Any], model: nn.Module, student: nn.Module, seconds: float) -> dict[str, Any]:
    """The same object for a ``student`` that was made by moving ``model`` to a task: no budget, nothing factored anew.

    Args:
        transfer: what was done.
    """
    teacher, made = ({"params": params_of(m), "macs": None, "bytes": bytes_of(m)} for m in (model, student))
    return {
        "teacher": teacher,
        "student": made,
        "budget": dict.fromkeys(("unit", "target", "achieved")),
        "predicted_kl": None,
        "fidelity": fidelity_json(None),
        "measured_on": None,
        "generator": dict.fromkeys(("name", "strength")),
        "seconds": seconds,
        "layers": [],
        "transfer": dict(transfer),
    }


def fidelity_json(fidelity: Fidelity | None) -> dict[str, Any]:
    """Every key is there; null where not measured."""
    keys = ("agreement", "kl", "top1_teacher", "top1_student", "images")
    if fidelity is None:
        return dict.fromkeys(keys)
    # JSON has no NaN: a student whose outputs overflowed has no KL.
    return {key: value if value is None or math.isfinite(value) else None for key, value in asdict(fidelity).items()}


def layer_row(layer: LayerSpec, plan: RankPlan, finishing: Finishing) -> dict[str, Any]:
    """One layer before and after. A candidate that the plan leaves dense is ``kept``, with the reason."""
    rank, inner = plan.ranks.get(layer.name), plan.input_ranks.get(layer.name)
    status, reason = layer.status, layer.reason
    if status is Status.FACTORED and rank is None:
        status, reason = Status.KEPT, "dense is worth its cost at this budget"
        if layer.measured is not None and not layer.measured.forms:
            reason = "no form of it was faster than the dense layer"
    params, macs = layer.params, layer.dense_macs
    if rank is not None:
        params += layer.cost(Unit.PARAMS, rank, inner) - layer.dense_params
        macs = layer.cost(Unit.MACS, rank, inner)
    return {
        "name": layer.name,
        "kind": layer.kind,
        "status": str(status),
        "reason": reason,
        "rank": rank,
        "input_rank": inner,
        "full_rank": layer.full_rank or None,
        "full_input_rank": layer.channels if layer.projects else None,
        "params_before": layer.params,
        "params_after": params,
        "macs_before": layer.dense_macs,
        "macs_after": macs,
        "refitted": None if rank is None else str(finishing.layers.get(layer.name, Refit.NONE)),
    }


def warn_if_larger(params: int | None, report: Mapping[str, Any]) -> None:
    """Warn where what was made of a student of ``params`` parameters (``None``: of a dense model) has more than it."""
    dense, made = report["teacher"]["params"], report["student"]["params"]
    if params is None or made <= params:
        return
    warn(
        f"received a student of {params:,} parameters, of which one of {made:,} was made; expected fewer; shares are "
        f"of its dense form, of {dense:,} parameters: pass a smaller budget (as parameters below {params / dense:.3g})"
    )


def class_names(report: Mapping[str, Any]) -> list[str]:
    """Names of a student's outputs by label, where they are known: it was moved to a task, or made of one that was."""
    return list(report.get("transfer", report).get("classes") or [])


def of_source(source: Mapping[str, Any]) -> dict[str, Any]:
    """What the report of a student has of the report of the model that it was made of: the names of the classes and,
    if that is a student itself, all as ``before``.
    """
    names, made = class_names(source), "teacher" in source or "transfer" in source
    return ({"classes": names} if names else {}) | ({"before": copy.deepcopy(dict(source))} if made else {})


def history(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """This report and, of a student that was moved or made of another, those of what it was before; newest first."""
    found = [report]
    while before := found[-1].get("before"):
        found.append(before)
    return found


def layers_of(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for every layer; of a student that was moved, as it was before. Empty where no row is known."""
    return next((list(stage["layers"]) for stage in history(report) if stage.get("layers")), [])


def print_report(report: Mapping[str, Any], console: Console | None = None) -> None:
    """A table of every layer with its status, and the totals; of a student that was moved, as they were before."""
    console = console or Console(markup=False, highlight=False)  # brackets in paths are brackets
    if not console.is_terminal and console.width < PIPED_WIDTH:
        console = Console(file=console.file, width=PIPED_WIDTH, markup=False, highlight=False)
    # Paths and statuses are what one searches for: they fold, never lose letters.
    title = "Layers as they were before the student was moved" if "transfer" in report else None
    table = Table(Column("layer", overflow="fold"), "kind", Column("status", no_wrap=True), title=title)
    for name in ("rank", "params", "MACs", "reason"):
        table.add_column(name, overflow="fold")
    rows = layers_of(report)
    for row in rows:
        table.add_row(
            row["name"],
            row["kind"],
            row["status"],
            "" if row["rank"] is None else f"{row.get('input_rank') or ''} {row['rank']}".strip(),
            _change(row["params_before"], row["params_after"]),
            _change(row["macs_before"], row["macs_after"]),
            row["reason"],
        )
    if rows:
        console.print(table)
    console.print(summary(report), highlight=False)


def summary(report: Mapping[str, Any]) -> str:
    """The totals in a few lines."""
    before: Mapping[str, Any] = report.get("before") or {}
    known = "teacher" in before or "transfer" in before  # of a teacher only its classes are known
    earlier = [f"Before that:\n{summary(before)}"] if known else []
    if "transfer" in report:
        sizes = size_lines(report["teacher"], report["student"]) if "student" in report else []  # older ones have none
        told = [line for line in (transfer_line(report["transfer"]), *sizes, trained_line(report)) if line]
        return "\n".join([*told, *earlier])
    if "teacher" not in report:
        return "no report: this student was not made by generate"
    teacher, student, budget = report["teacher"], report["student"], report["budget"]
    lines = size_lines(teacher, student)
    if source := source_line(report):
        lines.append(source)
    achieved = "" if budget["achieved"] is None else f", achieved {budget['achieved']:.4f}"
    lines.append(f"budget: {budget['unit']} {budget['target']:g}{achieved}")
    if report["predicted_kl"] is not None:
        predicted = f"{report['predicted_kl']:.4g} nats"
        lines.append(f"KL as predicted when it was made: {predicted} (ranks students; go by what is measured)")
    fidelity = report["fidelity"]
    if fidelity["images"]:
        parts = [f"{k} {v:.4g}" for k, v in fidelity.items() if v is not None]
        where = f" on {report['measured_on']}" if report.get("measured_on") else ""
        lines.append(f"measured{where}: {', '.join(parts)}")
    if images := calibration(report):
        lines.append(f"calibrated on {images}")
    lines.append(f"generator: {report['generator']['name']}, strength {report['generator']['strength']:g}")
    if trained := trained_line(report):
        lines.append(trained)
    return "\n".join([*lines, *earlier])


def size_lines(teacher: Mapping[str, Any], student: Mapping[str, Any]) -> list[str]:
    """What is known of both, a line for each unit."""
    return [
        f"{unit}: {teacher[unit]:,} -> {student[unit]:,} ({student[unit] / max(teacher[unit], 1):.1%})"
        for unit in (str(Unit.PARAMS), str(Unit.MACS), "bytes")
        if teacher[unit] is not None and student[unit] is not None
    ]


def _change(before: int, after: int) -> str:
    return f"{before:,}" if before == after else f"{before:,} -> {after:,}"
