"""The report of a student says what is saved: what its user changed is counted, and what is unknown then is null."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from hypercompress import Budget, compress
from hypercompress.data import Preprocess
from hypercompress.outdated import with_new_head, with_new_input_size
from hypercompress.report import bytes_of, class_names, params_of, summary
from hypercompress.student import Student, from_pretrained
from tests.student.networks import vit_student

REPORTED: dict[str, Any] = {
    "teacher": {"params": 9, "macs": 9, "bytes": 9},
    "student": {"params": 5, "macs": 7, "bytes": 5},
    "budget": {"unit": "params", "target": 0.6, "achieved": 0.6},
    "predicted_kl": 0.5,
    "fidelity": {"agreement": 0.9, "kl": 0.5, "top1_teacher": 0.8, "top1_student": 0.7, "images": 6},
    "measured_on": "held-out calibration images",
    "generator": {"name": "svd", "strength": 0.0},
}


def saved_report(student: Student, folder: Path) -> dict[str, Any]:
    student.save_pretrained(folder, overwrite=True)
    assert json.loads((folder / "report.json").read_text()) == student.report
    return student.report


def test_the_report_has_the_size_of_what_is_saved(student: Student, tmp_path: Path) -> None:
    count = sum(p.numel() for p in student.parameters())
    student.report = {**REPORTED, "student": {"params": count, "macs": 7, "bytes": bytes_of(student)}}
    before = copy.deepcopy(student.report)
    assert saved_report(student, tmp_path / "s") == before
    size = {"params": count, "macs": 7, "bytes": bytes_of(student.half())}
    assert saved_report(student, tmp_path / "s") == {**before, "student": size}, "in half precision it is as near"
    assert size["bytes"] < before["student"]["bytes"]

    student.architecture, student.fc = None, nn.Linear(student.fc.in_features, 3)  # timm would not build it
    report = saved_report(student, tmp_path / "s")
    size = {"params": sum(p.numel() for p in student.parameters()), "macs": None, "bytes": bytes_of(student)}
    assert report["student"] == size
    assert (report["predicted_kl"], report["measured_on"], *report["fidelity"].values()) == (None,) * 7
    assert {key: report[key] for key in ("teacher", "generator")} == {
        key: before[key] for key in ("teacher", "generator")
    }
    assert report["budget"] == {"unit": "params", "target": 0.6, "achieved": None}
    card = (tmp_path / "s" / "README.md").read_text()
    assert f"| student | {size['params']:,} | - | {size['bytes']:,} |" in card
    assert "Fidelity" not in card
    assert f"params: 9 -> {size['params']:,} (" in summary(report)
    assert "macs:" not in summary(report)


def test_a_new_classifier_as_large_as_the_old_one_is_another(student: Student, tmp_path: Path) -> None:
    student.report = {
        **REPORTED,
        "student": {**REPORTED["student"], "params": sum(p.numel() for p in student.parameters())},
    }
    student.reset_classifier(7)
    report = saved_report(student, tmp_path / "s")
    assert report["student"]["macs"] == 7
    assert (report["predicted_kl"], *report["fidelity"].values()) == (None,) * 6


def test_other_outputs_than_the_names_in_the_report(student: Student, tmp_path: Path) -> None:
    count = sum(p.numel() for p in student.parameters())
    student.report = {**REPORTED, "student": {**REPORTED["student"], "params": count}, "classes": ["a", "b"]}
    report = saved_report(student, tmp_path / "s")
    assert (report["predicted_kl"], report["classes"]) == (None, None)
    assert report["budget"] == REPORTED["budget"]


@pytest.mark.parametrize(("unit", "achieved"), [("params", 0.6), ("macs", None), ("latency", None)])
def test_what_a_new_input_size_changes(unit: str, achieved: float | None, student: Student) -> None:
    """Of a network that has as many parameters as before."""
    count = sum(p.numel() for p in student.parameters())
    made = {**REPORTED["student"], "params": count}
    before = {
        **REPORTED,
        "student": made,
        "budget": {**REPORTED["budget"], "unit": unit},
        "latency": {"teacher_ms": 1.0},
    }
    report = with_new_input_size({**before, "classes": ["a"] * student.num_classes}, student)
    assert (report["teacher"]["macs"], report["student"]["macs"], report["latency"]) == (None, None, None)
    assert report["budget"] == {"unit": unit, "target": 0.6, "achieved": achieved}
    assert (report["predicted_kl"], report["classes"]) == (None, ["a"] * student.num_classes)
    assert with_new_input_size({}, student) == {}


def test_steps_of_ones_own_are_counted(student: Student, tmp_path: Path) -> None:
    student.report = {**REPORTED, "student": {**REPORTED["student"], "params": params_of(student)}}
    student.count_steps(3)
    student.count_steps(4)
    report = saved_report(student, tmp_path / "s")
    assert (report["distilled_steps"], report["measured_on"], *report["fidelity"].values()) == (7,) + (None,) * 6
    assert "Trained for 7 steps after that" in (tmp_path / "s" / "README.md").read_text()
    student.report = {}
    student.count_steps(3)
    assert saved_report(student, tmp_path / "s") == {}, "of unknown origin"


def test_a_new_classifier_has_no_names(student: Student, tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    student.report = {**REPORTED, "classes": names}
    student.reset_classifier(3)
    assert saved_report(student, tmp_path / "s")["classes"] is None
    moved = {**REPORTED, "transfer": {"classes": names, "ways": 3}}
    assert with_new_head(moved, student)["transfer"] == {"classes": None, "ways": None, "changed": ["head"]}
    assert class_names(from_pretrained(tmp_path / "s").report) == []


def test_a_changed_input_size_survives_a_reload(tmp_path: Path) -> None:
    student, x = vit_student(), torch.randn(2, 3, 128, 96)
    student.set_input_size(img_size=(128, 96))
    report = saved_report(student, tmp_path / "s")
    assert (report["student"]["macs"], report["predicted_kl"]) == (None, None)
    with torch.no_grad():
        assert torch.equal(from_pretrained(tmp_path / "s")(x), student(x))


@pytest.mark.parametrize("size", [96, (96, 64)])
def test_images_are_prepared_in_the_changed_size(tmp_path: Path, size: int | tuple[int, int]) -> None:
    student, wanted = vit_student(), (3, 96, 96 if size == 96 else 64)
    student.set_input_size(size)
    student.save_pretrained(tmp_path / "s")
    for one in (student, from_pretrained(tmp_path / "s")):
        assert Preprocess.of(one).input_size == Preprocess.of(one.model).input_size == wanted
        assert Preprocess.of(one).crop_pct == 1


@pytest.mark.filterwarnings("ignore:::timm.layers.interpolate")  # what timm does to the table of relative positions
@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_windows_that_change_with_the_input_size_survive_a_reload(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    small = {"img_size": 64, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)}
    model = timm.create_model(name, num_classes=4, **small).eval()
    if not hasattr(model, "_model_args"):
        pytest.skip("this timm does not note what it changes, and the student is saved with a warning")
    student = compress(model, Budget(params=0.7), list(torch.randn(9, 3, 64, 64).split(3)), "svd", refit=False)
    student.set_input_size((128, 128))
    assert student.layers[0].blocks[0].window_size != model.layers[0].blocks[0].window_size
    student.save_pretrained(tmp_path / "s")
    x = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        assert torch.equal(from_pretrained(tmp_path / "s")(x), student(x))
