"""The model card: README.md of a student folder."""

from collections.abc import Mapping
from pathlib import PurePath
from typing import Any

HEAD, SIZE, WEIGHTS = "head", "image size", "weights"  # what may have been changed since a transfer


def transfer_line(transfer: Mapping[str, Any]) -> str:
    """A sentence of what `adapt` did, from its report, and one of what was changed since."""
    changed = transfer.get("changed", ())
    data = f" of {_last_name(transfer['data'])}" if transfer.get("data") else ""
    images, backbone = f"{transfer['images']} images{data}", f"{transfer['kept']} backbone"
    if HEAD in changed:
        return (
            f"Moved to a new task by {images}: {backbone} ({transfer['why']}), "
            f"{steps_line(transfer)}. Its head was replaced after that: nothing is known of the new one."
        )
    views = transfer.get("views", {"kept": False})  # students that are older have none
    levels = transfer.get("levels", {"kept": False})["kept"]  # nor these
    judged = "views" if views["kept"] else "levels" if levels else transfer["kept"]
    left_out = transfer["loo"][judged]["accuracy"]
    before = " before the steps" if transfer["steps"] else ""
    beside = f", {views['count']} views of each" if views["kept"] else ""
    read = " on the maps of all stages" if levels else ""
    return (
        f"Moved to {transfer['ways']} classes by {images}{beside}: {backbone} "
        f"({transfer['why']}), ridge head{read} of penalty {transfer['penalty']:.3g}, {steps_line(transfer)}, "
        f"leave-one-out accuracy{before} {'unknown' if left_out is None else f'{left_out:.4f}'}."
        f"{' Its image size was changed after that.' if SIZE in changed else ''}"
    )


def steps_line(transfer: Mapping[str, Any]) -> str:
    """The steps that `adapt` took, at which rate, and how far it followed them."""
    tuned, frozen = transfer.get("tuned") or "", transfer.get("frozen")
    what = {
        "norms": " on norms, biases and head",
        "all": " on all parameters",
        "head": " on the head alone",  # all else was frozen
    }.get(tuned, "")
    what += f" but {frozen} frozen tensor{'' if frozen == 1 else 's'}" if what and frozen and tuned != "head" else ""
    share = transfer.get("followed") or 1.0  # of students that are older all of the way
    rate = f" at a rate of {transfer['rate']:g}" if transfer.get("rate") else ""
    followed = "" if share == 1 else f", followed {share:g} of the way"
    return f"{steps_of(transfer['steps'])}{what}{rate}{followed}"


def steps_of(count: int) -> str:
    """A number of steps in words."""
    return f"{count:,} step{'' if count == 1 else 's'}"


def trained_line(report: Mapping[str, Any]) -> str:
    """How long the student was trained after it was made; empty if it was not."""
    steps = report.get("distilled_steps")
    return f"Trained for {steps_of(steps)} after that." if steps else ""


def source_line(report: Mapping[str, Any]) -> str:
    """Of what student it was made, if of one: that, and not the first teacher, is what it was compared with. Empty of
    one that was moved, which has no fidelity.
    """
    before = report.get("before")
    if not before or "transfer" in report:
        return ""
    size = (before.get("student") or {}).get("params")
    made = f"Made of a student{'' if size is None else f' of {size:,} parameters'}, multiplied out: that is the teacher"
    measured = any(value is not None for value in (report.get("fidelity") or {}).values())
    return f"{made}, and fidelity is to that student." if measured and not trained_line(report) else f"{made}."


def calibration(report: Mapping[str, Any]) -> str:
    """The images that it was made with, and whether the BatchNorms took their moments; empty if there were none."""
    how = ", its BatchNorms renormalised meanwhile" if report.get("renormalized") else ""
    return f"{report['calibration']}{how}" if report.get("calibration") else ""


def fidelity_line(report: Mapping[str, Any]) -> str:
    """What was measured, and on what where the report says so; empty if nothing was."""
    values = {name: value for name, value in (report.get("fidelity") or {}).items() if value is not None}
    if not values:
        return ""
    where = f", measured on {report['measured_on']}" if report.get("measured_on") else ""
    return f"Fidelity: {', '.join(f'{name} {value}' for name, value in values.items())}{where}."


def budget_line(report: Mapping[str, Any]) -> str:
    """What was asked for, and what made it; empty of a student that was moved to a task, or is of unknown origin."""
    budget, generator = report.get("budget") or {}, report.get("generator") or {}
    if budget.get("target") is None:
        return ""
    achieved = "" if budget.get("achieved") is None else f", achieved {budget['achieved']:.4f}"
    return (
        f"Budget: {budget['target']:g} of the teacher's {budget['unit']}{achieved}. "
        f"Generator: {generator['name']}, strength {generator['strength']:g}."
    )


def size_row(name: str, sizes: Mapping[str, Any]) -> str:
    """A row of the table of sizes; a dash stands for what is not known."""
    values = (sizes[unit] for unit in ("params", "macs", "bytes"))
    return f"| {name} | {' | '.join('-' if value is None else f'{value:,}' for value in values)} |"


def model_card(config: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    """README.md of a student folder: what it is, how small, how close, how to load it."""
    architecture = config["architecture"]
    name = architecture["name"] if architecture else "a custom network"
    lines = [
        "---",
        "library_name: hypercompress",
        "tags: [low-rank, compression]",
        "---",
        "",
        f"# Student of {name}",
        "",
    ]
    if "transfer" in report:
        lines += [transfer_line(report["transfer"]), ""]
    if "teacher" in report:
        lines += [
            "| | params | MACs | bytes |",
            "|---|---|---|---|",
            size_row("teacher", report["teacher"]),
            size_row("student", report["student"]),
        ]
    if source := source_line(report):
        lines += ["", source]
    calibrated = f"It was calibrated on {images}." if (images := calibration(report)) else ""
    for line in (budget_line(report), calibrated, trained_line(report), fidelity_line(report)):
        lines += ["", line] if line else []
    argument = "" if architecture else ", skeleton=YourModel()"
    lines += [
        "",
        "```python",
        "import hypercompress",
        f'student = hypercompress.from_pretrained("."{argument})',
        "```",
        "",
    ]
    return "\n".join(lines)


def _last_name(data: str) -> str:
    """Of a path, or of a known set with its root, what may be read by everybody that a student is given to."""
    return PurePath(data.partition(":")[0]).name
