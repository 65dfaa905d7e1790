"""report.json adds up, is plain JSON, and gives every layer a status with a reason."""

import io
import json
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hypercompress.fidelity import Fidelity
from hypercompress.generator import ANALYTIC
from hypercompress.inspection import inspect
from hypercompress.report import fidelity_json, make_report, print_report, summary
from hypercompress.sketch import sketch
from hypercompress.specs import Budget
from hypercompress.student import Student, build_student
from tests.reports import MOVED

KEYS = {
    "teacher",
    "student",
    "budget",
    "predicted_kl",
    "fidelity",
    "measured_on",
    "generator",
    "seconds",
    "tilt",
    "refitted",
    "norms",
    "layers",
}
ROW = {
    "name",
    "kind",
    "status",
    "reason",
    "rank",
    "input_rank",
    "full_rank",
    "full_input_rank",
    "params_before",
    "params_after",
    "macs_before",
    "macs_after",
    "refitted",
}


def made(share: float = 0.5) -> tuple[nn.Module, Student, dict[str, Any]]:
    teacher = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.Conv2d(16, 16, 3, groups=16),
        nn.Conv2d(16, 32, 1),
        nn.Flatten(),
        nn.Linear(32 * 16, 20),
        nn.Linear(20, 2),
    ).eval()
    x = torch.randn(4, 3, 8, 8)
    spec = inspect(teacher, x)
    budget = Budget(params=share)
    generation = ANALYTIC["kfac"].generate(spec, sketch(teacher, spec, [x]), budget)
    student = build_student(teacher, spec, generation)
    fidelity = Fidelity(0.75, 0.02, None, None, 4)
    sizes = {"teacher_bytes": 100, "student_bytes": 50}
    return teacher, student, make_report(spec, budget, generation, **sizes, seconds=1.5, fidelity=fidelity)


@pytest.mark.parametrize("share", [0.3, 0.6, 1.0])
def test_rows_add_up_to_what_the_models_cost(share: float) -> None:
    teacher, student, report = made(share)
    assert set(report) == KEYS
    assert all(set(row) == ROW for row in report["layers"])
    for side, model in (("teacher", teacher), ("student", student)):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.randn(1, 3, 8, 8))
        assert report[side]["params"] == sum(p.numel() for p in model.parameters())
        assert report[side]["macs"] == counter.get_total_flops() // 2
    assert sum(row["params_after"] for row in report["layers"]) == report["student"]["params"]
    assert sum(row["macs_after"] for row in report["layers"]) == report["student"]["macs"]
    assert report["budget"]["achieved"] * report["teacher"]["params"] == pytest.approx(report["student"]["params"])


def test_every_layer_has_a_status_and_every_status_but_factored_a_reason() -> None:
    _, student, report = made(0.6)
    ranks = {row["name"]: row["rank"] for row in report["layers"] if row["rank"] is not None}
    assert ranks == student.ranks
    for row in report["layers"]:
        assert row["status"] in ("factored", "kept", "unsupported", "tied")
        assert (row["status"] == "factored") is (row["rank"] is not None) is (row["reason"] == "")
    full = {row["name"]: (row["full_rank"], row["full_input_rank"]) for row in report["layers"]}
    assert [full[name] for name in ("0", "1", "3", "5")] == [(16, 3), (None, None), (16, None), (20, None)]
    dense = [row for row in made(1.0)[2]["layers"] if row["name"] == "5"]
    assert dense[0]["reason"] == "dense is worth its cost at this budget"


def test_report_is_plain_json_also_with_a_student_that_overflowed() -> None:
    report = made()[2]
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    broken = fidelity_json(Fidelity(0.1, float("inf"), None, 0.2, 10))
    assert broken == {"agreement": 0.1, "kl": None, "top1_teacher": None, "top1_student": 0.2, "images": 10}
    assert set(fidelity_json(None).values()) == {None}


def test_table_names_every_layer_and_the_totals() -> None:
    report = made()[2]
    console = Console(file=io.StringIO(), width=200)
    print_report(report, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(row["reason"] in text for row in report["layers"])
    assert "depthwise convolution (groups=16)" in text
    assert "generator: kfac, strength 0" in text
    assert f"params: {report['teacher']['params']:,} -> {report['student']['params']:,}" in text


def test_brackets_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    report = {**made()[2], "calibration": "/data/[old]/[/photos]"}
    report["layers"][0]["reason"] = "in [red] and [/red]"
    Student(nn.Identity(), report=report).print_compression()
    text = capsys.readouterr().out
    assert "/data/[old]/[/photos]" in text
    assert "in [red] and [/red]" in text


def test_summary_says_what_is_known() -> None:
    report = made()[2]
    assert "measured on held-out calibration images: agreement 0.75, kl 0.02, images 4" in summary(report)
    silent = {**report, "predicted_kl": None, "fidelity": fidelity_json(None)}
    assert "predicted" not in summary(silent)
    told = summary({**report, "predicted_kl": 0.01234})
    assert "\nKL as predicted when it was made: 0.01234 nats (ranks students; go by what is measured)\n" in told
    assert "measured" not in summary(silent)
    assert summary({}) == "no report: this student was not made by generate"


def test_a_moved_student_shows_what_it_was_before() -> None:
    """Its layers are still those of the student that was moved."""
    _, _, before = made()
    console = Console(file=io.StringIO(), width=200)
    print_report({"transfer": MOVED, "before": before}, console)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert text.split("\n")[0].strip() == "Layers as they were before the student was moved"
    assert text.index("Moved to 3 classes by 9 images") < text.index("Before that:") < text.index("budget: params")
    assert all(row["name"] in text for row in before["layers"])
    assert "Before that" not in summary({"transfer": MOVED})
