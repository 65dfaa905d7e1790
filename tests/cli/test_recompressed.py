"""A student that is compressed again: what it is compared with, and what it was before."""

import json
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from hypercompress import Budget, Student, adapt, compress, from_pretrained
from hypercompress.page.render import report_page
from hypercompress.report import class_names, history, layers_of, summary
from hypercompress.running.calibration import split_batches
from tests.cli.words import SIZE, Run, write_images


def kl(teacher: nn.Module, student: nn.Module, batches: list[torch.Tensor]) -> float:
    """Mean over samples, in float64."""
    with torch.no_grad():
        p, q = (torch.cat([model(batch) for batch in batches]).double().log_softmax(-1) for model in (teacher, student))
    return float(F.kl_div(q, p, reduction="batchmean", log_target=True))


def test_fidelity_is_to_the_student_that_it_was_made_of(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = nn.Sequential(nn.Linear(12, 48), nn.Tanh(), nn.Linear(48, 40), nn.Tanh(), nn.Linear(40, 5)).eval()
    data = [torch.randn(16, 12) for _ in range(8)]
    first = compress(original, Budget(params=0.4), data, "svd", final_fit=False)
    second = compress(first, Budget(params=0.3), data, "svd", final_fit=False)
    held_out = list(split_batches(data, torch.device("cpu"), torch.float32).confirm)
    told = second.report["fidelity"]["kl"]
    of_first, of_original = (kl(model, second, held_out) for model in (first, original))
    assert told == pytest.approx(of_first, rel=1e-3)
    assert abs(told - of_original) > 0.02 * of_original
    assert second.report["before"] == first.report
    assert [stage["budget"]["target"] for stage in history(second.report)] == [0.3, 0.4]
    assert layers_of(second.report) == second.report["layers"]
    second.save_pretrained(tmp_path / "s")
    size = sum(parameter.numel() for parameter in first.parameters())
    line = f"Made of a student of {size:,} parameters, multiplied out: that is the teacher"
    page = report_page(second.report, "net")
    for text in ((tmp_path / "s" / "README.md").read_text(), summary(second.report), page):
        assert text.count(line) == text.count(f"{line}, and fidelity is to that student.") == 1
    assert summary(second.report).split("Before that:\n")[1] == summary(first.report)
    assert page.index("<h2>Fidelity<") < page.index("<h2>Fidelity before it was compressed again<")
    second.count_steps(3)  # whatever it is measured against after that
    assert f"{line}." in summary(second.report)
    assert "made of a student" not in summary(first.report).lower()


def test_one_that_was_moved_in_between() -> None:
    torch.manual_seed(0)
    teacher = timm.create_model("test_resnet", num_classes=6).eval()
    images, labels = torch.randn(12, 3, 32, 32), torch.arange(12) % 3
    moved = adapt(teacher, images, labels, network="none", views=0, names=["a", "b", "c"])
    again = compress(moved, Budget(params=0.8), [torch.randn(8, 3, 32, 32) for _ in range(4)], "svd")
    assert again.report["before"]["transfer"]["images"] == 12
    assert class_names(again.report) == ["a", "b", "c"]
    assert summary(again.report).index("budget: params 0.8") < summary(again.report).index("Moved to 3 classes")
    assert "moved" not in summary(again.report).split("Before that:")[0].lower()
    third = adapt(again, images, labels, network="none", views=0)
    assert [("transfer" in stage) for stage in history(third.report)] == [True, False, True]
    page = report_page(third.report, "net")
    assert page.index("<h2>Size before it was moved<") < page.index("<h2>Size before it was compressed again<")


def test_a_model_of_which_only_the_classes_are_known_is_the_teacher() -> None:
    """As one that `train.py` has trained, whose folder is that of a student."""
    model = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 2)).eval()
    student = compress(Student(model, report={"classes": ["a", "b"]}), Budget(params=0.6), [torch.randn(9, 12)], "svd")
    assert class_names(student.report) == ["a", "b"]
    assert "before" not in student.report


def test_images_that_moved_it_are_told_after_it_was_compressed_again(
    run: Run, teacher: tuple[object, ...], tmp_path: Path
) -> None:
    """Also where they calibrated it, too: that they taught it its labels says more."""
    name, *rest = teacher
    for label in "ab":
        write_images(tmp_path / "new" / label, 8)
    moved, data = tmp_path / "moved", ("--data", tmp_path / "new")
    assert run("transfer", name, moved, *rest, *SIZE, "--views", 0, "--shots", 2, *data)[0] == 0
    for out, more in (("without", ()), ("with", data)):
        assert run("generate", moved, tmp_path / out, "--params", 0.7, "--generator", "svd", *more)[0] == 0
        report = json.loads((tmp_path / out / "report.json").read_text())
        assert report["before"] == json.loads((moved / "report.json").read_text())
        assert report["classes"] == ["a", "b"]
        assert from_pretrained(tmp_path / out).report == report
        code, said, _ = run("evaluate", tmp_path / out, *data)
        assert code == 0
        assert "some of these have moved the student to its task" in said
