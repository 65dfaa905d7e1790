"""The page: everything that the template needs, put into it, with every name escaped."""

from collections import Counter
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from hypercompress.page import bars, columns
from hypercompress.page.facts import sections
from hypercompress.page.words import changed, counted, layer_name, printable, share
from hypercompress.report import layers_of
from hypercompress.specs import Refit

TEMPLATE = "report.html.jinja"
REFITTED = {Refit.OUTPUTS: "output factor refitted", Refit.BOTH: "both factors refitted"}


def report_page(report: Mapping[str, Any], name: str) -> str:
    """One HTML document that needs nothing but itself: no script, and no font, style or image from elsewhere.

    Args:
        report: of a student, as ``report.json`` holds it; not empty.
        name: of the student's architecture.

    Raises:
        AttributeError, ArithmeticError, KeyError, TypeError, ValueError: it is no report.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_finalized
    )
    rows = layers_of(report)
    template = environment.from_string(files("hypercompress.page").joinpath(TEMPLATE).read_text(encoding="utf-8"))
    return template.render(
        name=name,
        lead=_lead(report),
        sections=sections(report),
        moved="transfer" in report,
        bar_plots=bars.bar_plots(rows),
        bar=bars,
        rank_plot=columns.rank_plot(rows),
        column=columns,
        statuses=Counter(str(row["status"]) for row in rows),
        layers=[_line(row) for row in rows],
    )


def _finalized(value: Any) -> Any:
    """Before it is escaped: text of a report may hold characters that no HTML may."""
    return printable(value) if isinstance(value, str) else value


def _lead(report: Mapping[str, Any]) -> str:
    """The whole story in one sentence; empty of a student that was moved, whose first section tells it."""
    if "teacher" not in report or "transfer" in report:
        return ""
    teacher, student = report["teacher"], report["student"]
    named = {"params": "its teacher's parameters", "macs": "the multiply-accumulates", "bytes": "the bytes"}
    parts = [f"{share(student[k], teacher[k])} of {text}" for k, text in named.items() if student[k] is not None]
    return f"It has {' and '.join([', '.join(parts[:-1]), parts[-1]] if parts[1:] else parts)}."


def _line(row: Mapping[str, Any]) -> dict[str, str]:
    """One row of the table of layers."""
    return {
        "name": layer_name(row),
        "kind": str(row["kind"]),
        "status": str(row["status"]),
        "rank": _rank(row["rank"], row.get("full_rank")),
        "input_rank": _rank(row.get("input_rank"), row.get("full_input_rank")),
        "params": changed(row["params_before"], row["params_after"]),
        "macs": changed(row["macs_before"], row["macs_after"]),
        "reason": str(row["reason"]) or REFITTED.get(row.get("refitted") or Refit.NONE, ""),
    }


def _rank(rank: Any, full: Any) -> str:
    if rank is None:
        return ""
    return f"{counted(rank):,}" + (f" of {counted(full):,}" if full else "")
