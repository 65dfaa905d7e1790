"""What the page says besides its plots: sizes, fidelity, and how the student was made, stage by stage."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hypercompress.page.words import counted, measured, share, size
from hypercompress.report import history
from hypercompress.saved.card import calibration, source_line, steps_of, trained_line, transfer_line

NAMES = {"params": "Parameters", "macs": "Multiply-accumulates (MACs)", "bytes": "Bytes"}
UNITS = {"params": "parameters", "macs": "multiply-accumulates", "latency": "time of a forward pass"}
OVERFLOWED = "no number: outputs overflowed"
TASKS = {
    "near": "near: the old classifier tells the new classes apart",
    "far": "far: the old classifier answers different new classes alike",
}
REFITTED = {"none": "as generated", "outputs": "output factors refitted", "both": "both factors refitted"}


@dataclass(frozen=True)
class Size:
    """One row of the table of sizes."""

    name: str
    teacher: str
    student: str
    share: str


@dataclass(frozen=True)
class Section:
    """A heading with sentences, sizes and facts; each may be empty."""

    title: str
    sentences: tuple[str, ...] = ()
    sizes: tuple[Size, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()


def sections(report: Mapping[str, Any]) -> list[Section]:
    """What is known of the student as it is, then of what it was before it was moved or compressed again."""
    found: list[Section] = []
    before = ""
    for stage in history(report):
        if "transfer" in stage:
            found.append(Section(f"Moved to a new task{before}", _sentences(stage), facts=_transfer(stage["transfer"])))
        if "teacher" in stage:
            found.append(Section(f"Size{before}", sizes=_sizes(stage), facts=_budget(stage)))
        if "transfer" in stage:  # there is no teacher of this task, and nothing was generated
            before = " before it was moved"
            continue
        if "fidelity" in stage:
            source = tuple(filter(None, [source_line(stage)]))
            found.append(Section(f"Fidelity{before}", source, facts=_fidelity(stage)))
        if "teacher" in stage:
            found.append(Section(f"How it was made{before}", facts=_origin(stage)))
        before = " before it was compressed again"
    return found


def _sentences(stage: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(line for line in (transfer_line(stage["transfer"]), trained_line(stage)) if line)


def _sizes(stage: Mapping[str, Any]) -> tuple[Size, ...]:
    teacher, student = stage["teacher"], stage["student"]
    return tuple(
        Size(text, size(teacher[key]), size(student[key]), share(student[key], teacher[key]))
        for key, text in NAMES.items()
    )


def _budget(stage: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    budget = stage["budget"]
    if budget["unit"] is None:
        return ()
    unit = UNITS.get(budget["unit"], str(budget["unit"]))
    asked = f"at most {measured(budget['target'], '{:g}')} of the {unit}"
    found = [("Budget", asked), ("Achieved", measured(budget["achieved"], "{:.4f}"))]
    if times := stage.get("latency"):
        spent = " → ".join(measured(times[key], "{:.3g} ms") for key in ("teacher_ms", "student_ms"))
        where = f"batch size {times['batch_size']}, {times['threads']} threads, {times['device']}"
        found.append(("Time of a forward pass", f"{spent} ({where})"))
    return tuple(found)


def _fidelity(stage: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    values, predicted = stage["fidelity"] or {}, stage.get("predicted_kl")
    overflowed = values.get("images") and values.get("kl") is None  # JSON has no infinity
    found = [
        ("Agreement with the teacher", measured(values.get("agreement"), "{:.2%}")),
        ("KL from the teacher", OVERFLOWED if overflowed else measured(values.get("kl"), "{:.4g} nats")),
    ]
    if predicted is not None:
        found.append(("KL as predicted when it was made", measured(predicted, "{:.4g} nats")))
    found += [
        ("Top-1 of the teacher", measured(values.get("top1_teacher"), "{:.2%}")),
        ("Top-1 of the student", measured(values.get("top1_student"), "{:.2%}")),
        ("Images measured", measured(values.get("images"), "{:,}")),
    ]
    if values.get("images"):
        found.append(("Measured on", str(stage.get("measured_on") or "images that the report does not name")))
    return tuple(found)


def _origin(stage: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    made = stage["generator"]
    found = [("Generator", f"{made['name']}, strength {measured(made['strength'], '{:g}')}")]
    if "calibration" in stage:
        found.append(("Calibrated on", calibration(stage) or "nothing: made from the weights alone"))
    if made_with := stage.get("made_with"):
        told = {"images": "images of calibration at most", "batch_size": "in a batch at most", "seed": "seed"}
        parts = [f"{text} {counted(made_with[key]):,}" for key, text in told.items() if made_with.get(key) is not None]
        found.append(("Made with", ", ".join(parts)))
    if "refitted" in stage:
        found.append(("Factors", REFITTED.get(stage["refitted"], str(stage["refitted"]))))
    if stage.get("tilt"):
        weight = measured(stage["tilt"], "{:g}")
        found.append(("Allocation", f"late layers weigh e^{weight} times as much as early ones"))
    if "norms" in stage:
        found.append(("Moments of norms", str(stage["norms"])))
    if search := stage.get("search"):
        found.append(("Search", f"{counted(search['tries']):,} tries in {measured(search['seconds'], '{:g} s')}"))
    if steps := stage.get("distilled_steps"):
        found.append(("Trained after that", steps_of(counted(steps))))
    return (*found, ("Time to make it", measured(stage.get("seconds"), "{:,.1f} s")))


def _transfer(moved: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    heads = {"plain": "the head alone", "adapted": "with adapted norms", "levels": "on the maps of all stages"}
    heads["views"] = "with views"
    ways = moved["ways"]  # null: the head was replaced
    found = [] if ways is None else [("Classes", f"{counted(ways):,}")]
    found.append(("Images", f"{counted(moved['images']):,}"))
    if task := TASKS.get(moved.get("task", "")):
        found.append(("Task", task))
    for key, text in heads.items():
        accuracy = moved["loo"].get(key, {}).get("accuracy")
        found.append((f"Leave-one-out accuracy, {text}", measured(accuracy, "{:.2%}")))
    if "seconds" in moved:
        found.append(("Time to move it", measured(moved["seconds"], "{:,.1f} s")))
    return tuple(found)
