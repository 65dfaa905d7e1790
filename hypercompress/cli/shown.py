"""What ``generate`` prints of a student, and of what it is made with."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.table import Table
from torch import nn

from hypercompress.cli import checks, inputs
from hypercompress.cli.terminal import Terminal
from hypercompress.generator import ANALYTIC
from hypercompress.running.norms import remembering_norms
from hypercompress.search import NAME as SEARCH
from hypercompress.synthetic.inversion import usual_images
from hypercompress.transfer.nearness import BAR, Nearness, nearness_of

SURE = 16  # labelled images: of fewer many a teacher is right on all by chance
REFITTED = {"none": "as generated", "outputs": "output factor refitted", "both": "both factors refitted"}


def show_student(report: Mapping[str, Any], terminal: Terminal, *, scaled: bool = False) -> None:
    """Teacher and student side by side, then what was asked for and how close the student stays.

    Args:
        scaled: whether the predicted KL was brought to what one student was measured at; else it ranks, and is often
            several times too small.
    """
    teacher, student, budget, fidelity = (report[name] for name in ("teacher", "student", "budget", "fidelity"))
    table = Table("", "teacher", "student", "share")
    for name in ("params", "macs", "bytes"):
        share = f"{student[name] / max(teacher[name], 1):.1%}"
        table.add_row(name, f"{teacher[name]:,}", f"{student[name]:,}", share)
    if fidelity["top1_teacher"] is not None:
        table.add_row("top1", f"{fidelity['top1_teacher']:.4f}", f"{fidelity['top1_student']:.4f}", "")
    terminal.show(table)
    terminal.note("budget", f"{budget['target']:g} of the {budget['unit']}, achieved {budget['achieved']:.4f}")
    if "latency" in report:
        times = report["latency"]
        terminal.note(
            "measured time",
            f"{times['teacher_ms']:.3g} ms -> {times['student_ms']:.3g} ms at batch size {times['batch_size']}",
        )
    if report["predicted_kl"] is not None:
        told = "" if scaled else " (ranks students, and is often far too small: go by what is measured)"
        terminal.note("predicted KL", f"{report['predicted_kl']:.4g} nats{told}")
    if fidelity["images"]:
        agreement = "" if fidelity["agreement"] is None else f", agreement {fidelity['agreement']:.4f}"
        kl = "KL not finite" if fidelity["kl"] is None else f"KL {fidelity['kl']:.4g} nats"
        made = checks.made_images(report["calibration"])
        kind = "" if made is None else f"{made.kind} "
        then = "; then made again of all images" if report.get("final_fit") else ""
        terminal.note("measured", f"{kl}{agreement} on {fidelity['images']} held-out {kind}images{then}")
    if (fidelity["images"] or 0) >= SURE and fidelity["top1_teacher"] == 1:
        terminal.note(
            "held-out images",
            f"the teacher is right on all {fidelity['images']}: if it was trained on them, fidelity here says little; "
            "evaluate on others",
        )
    generator = report["generator"]
    if generator["name"] not in (*ANALYTIC, SEARCH):
        unused = "" if generator["strength"] else " (not used)"
        terminal.note("strength of the hypernetwork", f"{generator['strength']:g}{unused}")
    if report["tilt"]:
        terminal.note("allocation", f"late layers weigh e^{report['tilt']:g} times as much as early ones")
    counts = Counter(layer["refitted"] for layer in report["layers"] if layer["refitted"] is not None)
    told = ", ".join(f"{counts[name]} {text}" for name, text in REFITTED.items() if counts[name])
    terminal.note("factored layers", told or "none")
    terminal.note("norm moments", str(report["norms"]))


def show_no_data(generator: str, teacher: nn.Module, terminal: Terminal) -> int:
    """How many images of noise are to stand in for others (`preparation.prepare`), and what is closer or faster."""
    if generator != "auto":
        terminal.note("no data", "the weights are read alone; without --generator it is slower and mostly closer")
        return 0
    count, norms = usual_images(inputs.input_size(teacher)), len(remembering_norms(teacher))
    renormalised = f", {norms} BatchNorms renormalised to it" if norms else ""
    closer = f"--data DATA, images of its own kind{'; or for small models --data synthetic' if norms else ''}"
    terminal.note(
        "no data",
        f"{count} images of 1/f noise stand in{renormalised}; closer: {closer}; faster, and mostly further away: "
        "--generator svd",
    )
    return count


def show_task(moved: Mapping[str, Any], terminal: Terminal) -> None:
    """Whether the task that a student was moved to is near, from the report of the transfer."""
    alike = moved.get("levels", {}).get("alike")
    task, why = nearness_of(alike), "how alike MODEL answers the new classes is not known"
    if alike is not None:
        why = f"alike {alike:.3g}, {'at most' if task is Nearness.NEAR else 'above'} {BAR:g}"
    terminal.note("task", f"{task} ({why})")
