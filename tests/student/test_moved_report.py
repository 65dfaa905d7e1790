"""The report of a student that was moved to a task and changed after that says nothing of what is gone."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from hypercompress import Student, adapt, from_pretrained
from hypercompress.page.render import report_page
from hypercompress.report import summary

GONE = {"accuracy": None, "loss": None}


def moved(name: str, size: tuple[int, int, int]) -> Student:
    model = timm.create_model(name, num_classes=10).eval()
    x, y = torch.randn(12, *size), torch.arange(12) % 3
    return adapt(model, x + y.view(-1, 1, 1, 1), y, network="none", views=0, names=["a", "b", "c"])


@pytest.mark.filterwarnings("ignore:received a student with other")  # of a head that nobody was told of
@pytest.mark.parametrize("inside", [False, True])
def test_a_new_head_is_told_and_the_old_one_is_not(inside: bool, tmp_path: Path) -> None:
    student = moved("test_resnet", (3, 32, 32))
    before: dict[str, Any] = student.report["transfer"]
    assert "leave-one-out accuracy 0." in summary(student.report)
    (student.model if inside else student).reset_classifier(7)
    student.save_pretrained(tmp_path / "s")
    told = student.report["transfer"]
    assert [told[key] for key in ("ways", "penalty", "scale", "classes")] == [None] * 4
    assert told["loo"] == dict.fromkeys(before["loo"], GONE)
    assert set(told["levels"]["loo_loss"].values()) <= {None}
    assert (told["images"], told["task"], told["seconds"]) == (12, before["task"], before["seconds"])
    card = (tmp_path / "s" / "README.md").read_text()
    for text in (card, summary(student.report)):
        assert "Its head was replaced after that: nothing is known of the new one." in text
        assert "leave-one-out" not in text
        assert "3 classes" not in text
    assert inside or from_pretrained(tmp_path / "s").report == student.report
    assert "Its head was replaced" in report_page(student.report, "s")


def test_a_new_image_size_is_told(tmp_path: Path) -> None:
    student = moved("test_vit", (3, 160, 160))
    before = student.report["transfer"]
    student.set_input_size(img_size=(96, 96))
    told = student.report["transfer"]
    assert told["loo"] == dict.fromkeys(before["loo"], GONE)
    assert (told["ways"], told["penalty"], told["classes"]) == (3, before["penalty"], ["a", "b", "c"])
    line = summary(student.report).splitlines()[0]
    assert line.startswith("Moved to 3 classes by 12 images")
    assert line.endswith("leave-one-out accuracy unknown. Its image size was changed after that.")


def test_training_is_told_and_what_was_left_out_before_it_is_not(tmp_path: Path) -> None:
    """Nobody knows how well the trained head tells the classes apart."""
    student = moved("test_resnet", (3, 32, 32))
    before = student.report["transfer"]
    student.count_steps(1)
    told = student.report["transfer"]
    assert told["loo"] == dict.fromkeys(before["loo"], GONE)
    assert set(told["levels"]["loo_loss"].values()) <= {None}
    assert told["changed"] == ["weights"]
    assert [told[key] for key in ("ways", "penalty", "classes")] == [3, before["penalty"], ["a", "b", "c"]]
    student.save_pretrained(tmp_path / "s")
    page = report_page(student.report, "s")
    for text in ((tmp_path / "s" / "README.md").read_text(), summary(student.report), page):
        assert "leave-one-out accuracy unknown" in text
        assert "Trained for 1 step after that." in text
