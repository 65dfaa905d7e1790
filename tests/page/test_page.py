"""The HTML page says what report.json says, stands alone, and escapes every name."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from rich.cells import cell_len

import hypercompress
from hypercompress import Budget
from hypercompress.page import report_page
from hypercompress.page.words import fitted, measured, printable
from hypercompress.report import layers_of, moved_report
from tests.pages import SVG, Page, drawings, norm, report_of, row
from tests.reports import MOVED

HOSTILE = """</title><script>alert("x")</script>&'\x00\u202e\udcff"""


@pytest.fixture(scope="module")
def real() -> dict[str, Any]:
    """The report of a student that has factored, kept, unsupported and normalising layers."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=10, img_size=32).eval()
    student = hypercompress.compress(model, Budget(params=0.5), data=None, generator="svd")
    return dict(student.report)


def test_the_page_of_a_real_student_has_every_number_of_its_report(real: dict[str, Any]) -> None:
    page = Page(report_page(real, "test_vit"))
    sizes, layers = page.tables
    assert page.headings[0] == "Student of test_vit"
    for line, key in zip(sizes[1:], ("params", "macs", "bytes"), strict=True):
        teacher, student = real["teacher"][key], real["student"][key]
        assert line[1:] == [f"{teacher:,}", f"{student:,}", f"{student / teacher:.1%}"]
    assert len(layers) == 1 + len(real["layers"])
    for number, (line, known) in enumerate(zip(layers[1:], real["layers"], strict=True), start=1):
        assert line[0] == str(number)
        assert line[1] == (known["name"] or "(the model itself)")
        assert line[2:4] == [known["kind"], known["status"]]
        assert line[4] == ("" if known["rank"] is None else f"{known['rank']} of {known['full_rank']}")
        assert line[6] == " → ".join(f"{n:,}" for n in dict.fromkeys((known["params_before"], known["params_after"])))
        assert line[7] == " → ".join(f"{n:,}" for n in dict.fromkeys((known["macs_before"], known["macs_after"])))
        assert known["reason"] in line[8]
    assert {known["status"] for known in real["layers"]} == {"factored", "kept", "unsupported"}
    assert page.facts["Agreement with the teacher"] == page.facts["Top-1 of the student"] == "not measured"
    assert page.facts["Achieved"] == f"{real['budget']['achieved']:.4f}"


def test_fidelity_is_shown_as_measured_and_nulls_as_not() -> None:
    facts = Page(report_page(report_of(row("a")), "net")).facts
    assert facts["Agreement with the teacher"] == "93.75%"
    assert facts["KL from the teacher"] == "0.0456 nats"
    assert facts["KL as predicted when it was made"] == "0.0123 nats"
    assert facts["Top-1 of the teacher"] == facts["Top-1 of the student"] == "not measured"
    assert (facts["Images measured"], facts["Measured on"]) == ("32", "held-out calibration images")
    unmeasured = dict.fromkeys(("agreement", "kl", "top1_teacher", "top1_student", "images"))
    facts = Page(report_page(report_of(predicted_kl=None, fidelity=unmeasured), "net")).facts
    assert "KL as predicted when it was made" not in facts
    assert "Measured on" not in facts
    assert facts["Images measured"] == "not measured"
    overflowed = {**unmeasured, "images": 5}
    assert "overflowed" in Page(report_page(report_of(fidelity=overflowed), "net")).facts["KL from the teacher"]


def test_how_it_was_made_is_told_where_it_is_known() -> None:
    known = {
        "calibration": "photos",
        "refitted": "both",
        "tilt": 0.5,
        "norms": "re-estimated",
        "search": {"seconds": 3.0, "tries": 7},
        "distilled_steps": 200,
        "latency": {"teacher_ms": 2.0, "student_ms": 1.0, "batch_size": 1, "threads": 2, "device": "cpu"},
    }
    facts = Page(report_page(report_of(**known), "net")).facts
    assert facts["Generator"] == "kfac, strength 0"
    assert facts["Calibrated on"] == "photos"
    assert facts["Factors"] == "both factors refitted"
    assert facts["Allocation"] == "late layers weigh e^0.5 times as much as early ones"
    assert facts["Search"] == "7 tries in 3 s"
    assert facts["Trained after that"] == "200 steps"
    assert facts["Time of a forward pass"] == "2 ms → 1 ms (batch size 1, 2 threads, cpu)"
    assert "weights alone" in Page(report_page(report_of(calibration=None), "net")).facts["Calibrated on"]


def test_it_needs_nothing_but_itself(real: dict[str, Any]) -> None:
    text = report_page(real, "test_vit")
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>\n")
    assert set(re.findall(r"https?://[^\"'\s<]*", text)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"url\(|@import|javascript:", text)
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "img", "link", "iframe", "object", "embed", "audio", "video", "a", "image", "use"}
    attributes = {name for _, known in page.tags for name in known}
    assert not {name for name in attributes if name.startswith("on") or name in {"src", "href", "xlink:href", "style"}}
    identifiers = [known["id"] for _, known in page.tags if "id" in known]
    assert len(identifiers) == len(set(identifiers)) > 0


def test_it_is_readable_in_the_dark_and_on_paper() -> None:
    text = report_page(report_of(), "net")
    for condition in ("@media screen and (prefers-color-scheme: dark)", "@media print"):
        assert condition in text
    used = set(re.findall(r"var\((--[a-z]+)\)", text))
    light, dark = re.findall(r":root \{(.*?)\}", text)
    assert used == set(re.findall(r"--[a-z]+", light)) == set(re.findall(r"--[a-z]+", dark))


def test_hostile_names_are_escaped() -> None:
    hostile = row(HOSTILE, kind=HOSTILE, status=HOSTILE, reason=HOSTILE)
    known = {"measured_on": HOSTILE, "calibration": HOSTILE, "refitted": HOSTILE, "norms": HOSTILE}
    text = report_page(report_of(hostile, row(HOSTILE * 9), **known), HOSTILE)
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "\x00" not in text
    assert "\u202e" not in text
    text.encode()  # no half of a character is left
    shown = HOSTILE[:-3] + r"\x00\u202e\udcff"
    assert page.headings[0] == f"Student of {shown}"
    assert page.tables[1][1][1:4] == [shown] * 3
    assert page.facts["Calibrated on"] == shown
    titles = [title.text for svg in drawings(text) for title in svg.iter(f"{SVG}title")]
    assert f"{shown}: 1,000 → 300 parameters" in titles


def test_null_where_nothing_is_known() -> None:
    """Of a moved student, whose report has every key of the contract, and of one with a new head."""
    moved = moved_report(MOVED, torch.nn.Linear(3, 4), torch.nn.Linear(3, 1), 1.0) | {"before": report_of(row("a"))}
    page = Page(report_page(moved, "net"))
    assert page.headings[:5] == [
        "Student of net",
        "Moved to a new task",
        "Size",
        "Size before it was moved",
        "Fidelity before it was moved",
    ]
    assert [cells[1:] for cells in page.tables[0][1:]] == [
        ["16", "4", "25.0%"],
        ["not measured", "not measured", "-"],
        ["64", "16", "25.0%"],
    ]
    headless = report_of(row("a"))
    headless["student"] = {**headless["student"], "macs": None}
    text = report_page(headless, "net")
    assert "of the multiply-accumulates" not in text
    assert Page(text).tables[0][2][2:] == ["not measured", "-"]


def test_what_it_was_made_with() -> None:
    """The report has the options, which are limits: there may have been fewer images, in smaller batches."""
    made = {"seed": 7, "images": 1024, "batch_size": 64, "generator": "auto", "refit": True, "norms": True}
    page = Page(report_page(report_of(row("a"), made_with=made), "net"))
    assert page.facts["Made with"] == "images of calibration at most 1,024, in a batch at most 64, seed 7"


def test_a_moved_student_tells_what_it_is_and_what_it_was() -> None:
    before = report_of(row("a"), norm("n"))
    text = report_page({"transfer": MOVED, "before": before}, "net")
    page = Page(text)
    assert page.headings[:5] == [
        "Student of net",
        "Moved to a new task",
        "Size before it was moved",
        "Fidelity before it was moved",
        "How it was made before it was moved",
    ]
    assert (page.facts["Classes"], page.facts["Images"]) == ("3", "9")
    assert page.facts["Leave-one-out accuracy, the head alone"] == "50.00%"
    assert "Task" not in page.facts  # older reports do not say
    assert page.facts["Leave-one-out accuracy, with adapted norms"] == "not measured"
    assert "as they were before the student was moved" in text
    levels = {**MOVED, "loo": {**MOVED["loo"], "levels": {"accuracy": 0.8125, "loss": 0.7}}}
    facts = Page(report_page({"transfer": levels}, "net")).facts
    assert facts["Leave-one-out accuracy, on the maps of all stages"] == "81.25%"
    assert len(page.tables[1]) == 3
    for task, told in (("near", "tells the new classes apart"), ("far", "answers different new classes alike")):
        moved = report_page({"transfer": {**MOVED, "task": task}}, "net")
        assert Page(moved).facts["Task"] == f"{task}: the old classifier {told}"
    assert "Task" not in Page(report_page({"transfer": {**MOVED, "task": "unknown"}}, "net")).facts
    twice = {"transfer": MOVED, "before": {"transfer": MOVED, "before": before}}
    assert layers_of(twice) == before["layers"]
    assert len(Page(report_page(twice, "net")).tables[1]) == 3
    alone = Page(report_page({"transfer": MOVED}, "net"))
    assert alone.tables == []
    assert drawings(report_page({"transfer": MOVED}, "net")) == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda report: report["teacher"].update(params=-1),
        lambda report: report["teacher"].update(params="many"),
        lambda report: report["layers"][0].update(params_before=float("nan")),
        lambda report: report["layers"][0].update(rank=1.5),
        lambda report: report["layers"][0].pop("kind"),
        lambda report: report["fidelity"].update(kl=float("inf")),
        lambda report: report.update(seconds="long"),
        lambda report: report.update(layers=5),
        lambda report: report.update(fidelity=[1]),
    ],
)
def test_a_damaged_report_raises(damage: Callable[[dict[str, Any]], object]) -> None:
    report = report_of(row("a"))
    damage(report)
    with pytest.raises((AttributeError, ArithmeticError, KeyError, TypeError, ValueError)):
        report_page(report, "net")


def test_words() -> None:
    assert measured(None, "{:g}") == "not measured"
    assert measured(0, "{:g}") == "0"
    assert fitted("short", 5) == "short"
    assert fitted("longer than that", 5) == "…that"
    assert cell_len(fitted("層" * 10, 5)) <= 5
    assert printable("a\tb é 層") == r"a\tb é 層"
