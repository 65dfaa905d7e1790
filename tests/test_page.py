"""The HTML page says what report.json says, stands alone, draws inside its frame, and escapes every name."""

import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest
import timm
import torch
from rich.cells import cell_len

import hypercompress
from hypercompress import Budget
from hypercompress.page import bars, columns, report_page
from hypercompress.page.words import fitted, measured, printable
from hypercompress.report import layers_of, moved_report
from tests.reports import MOVED

VOID = frozenset({"meta", "rect", "line"})
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = """</title><script>alert("x")</script>&'\x00\u202e\udcff"""


class Page(HTMLParser):
    """Its tags in order, its tables, its terms and their descriptions; every element must be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.terms: list[str] = []
        self.described: list[str] = []
        self.headings: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    @property
    def facts(self) -> dict[str, str]:
        return dict(zip(self.terms, self.described, strict=True))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        match tag:
            case "table":
                self.tables.append([])
            case "tr":
                self.tables[-1].append([])
            case "td" | "th":
                self.tables[-1][-1].append("")
            case "dt" | "dd" | "h1" | "h2":
                self._of(tag).append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        match self.open[-1] if self.open else "":
            case "td" | "th":
                self.tables[-1][-1][-1] += data
            case "dt" | "dd" | "h1" | "h2" as tag:
                self._of(tag)[-1] += data

    def _of(self, tag: str) -> list[str]:
        return {"dt": self.terms, "dd": self.described}.get(tag, self.headings)


def row(name: str, **known: Any) -> dict[str, Any]:
    usual = {
        "kind": "conv2d",
        "status": "factored",
        "reason": "",
        "rank": 4,
        "input_rank": None,
        "full_rank": 16,
        "full_input_rank": 16,
        "params_before": 1000,
        "params_after": 300,
        "macs_before": 5000,
        "macs_after": 1500,
        "refitted": "outputs",
    }
    return {"name": name, **usual, **known}


def norm(name: str) -> dict[str, Any]:
    known = {"rank": None, "full_rank": None, "full_input_rank": None, "macs_before": 0, "macs_after": 0}
    return row(name, kind="BatchNorm2d", status="kept", reason="no matrix", params_before=2, params_after=2, **known)


def report_of(*rows: dict[str, Any], **known: Any) -> dict[str, Any]:
    return {
        "teacher": {"params": 123456, "macs": 2000, "bytes": 0},
        "student": {"params": 30864, "macs": 2000, "bytes": 0},
        "budget": {"unit": "params", "target": 0.3, "achieved": 0.25},
        "predicted_kl": 0.0123,
        "fidelity": {"agreement": 0.9375, "kl": 0.0456, "top1_teacher": None, "top1_student": None, "images": 32},
        "measured_on": "held-out calibration images",
        "generator": {"name": "kfac", "strength": 0.0},
        "seconds": 1.5,
        "layers": list(rows),
        **known,
    }


def drawings(text: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)]


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


@pytest.mark.parametrize("count", [1, 2, 20, 21, 40, 41, 300])
def test_drawings_have_titles_and_stay_in_their_frames(count: int) -> None:
    """Monospaced text of 11 px is at most 0.61 em wide a column; nothing in a drawing overlaps or is cut."""
    rows = [
        row(f"features.{i}.an_uncommonly_long_name_of_a_block.conv", params_before=10**i) for i in range(min(count, 9))
    ]
    rows += [row(f"block.{i}", input_rank=i % 17) for i in range(len(rows), count)]
    found = drawings(report_page(report_of(*rows, norm("bn")), "net"))
    assert len(found) == -(-(count + 1) // bars.MOST) + 1
    for svg in found:
        title = svg.find(f"{SVG}title")
        assert title is not None
        assert svg.get("role") == "img"
        assert svg.get("aria-labelledby") == title.get("id")
        width, height = map(float, str(svg.get("viewBox")).split()[2:])
        for box in boxes(svg):
            assert -0.01 <= box[0] <= box[2] <= width + 0.01, (title.text, box)
            assert 0 <= box[1] <= box[3] <= height, (title.text, box)
        written = boxes(svg, "text")
        for index, one in enumerate(written):
            for other in written[index + 1 :]:
                apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
                assert apart, (title.text, one, other)
    longest = max(max(bar.before, bar.after) for plot in bars.bar_plots(rows) for bar in plot.bars)
    assert longest == bars.RIGHT - bars.LEFT


def boxes(svg: ElementTree.Element, *tags: str) -> list[tuple[float, float, float, float]]:
    """Left, top, right, bottom of every text and shape."""
    found = []
    for element in svg.iter():
        tag, value = element.tag.removeprefix(SVG), lambda name, e=element: float(e.get(name))
        if tags and tag not in tags:
            continue
        if tag == "rect":
            found.append((value("x"), value("y"), value("x") + value("width"), value("y") + value("height")))
        elif tag == "line":
            found.append((value("x1"), value("y1"), value("x2"), value("y2")))
        elif tag == "text":
            wide = cell_len(element.text or "") * 11 * 0.61
            anchor = {"end": 1.0, "middle": 0.5}.get(str(element.get("class")).split()[-1], 0.0)
            left = value("x") - anchor * wide
            found.append((left, value("y") - 10, left + wide, value("y") + 3))
    return found


def test_bars_are_as_long_as_the_layers_are_large_in_order() -> None:
    rows = [row("a"), norm("n"), row("b", params_before=500, params_after=500), norm("m")]
    (plot,) = bars.bar_plots(rows)
    full = bars.RIGHT - bars.LEFT
    assert [bar.label for bar in plot.bars] == ["a", "b", "2 small ones without MACs"]
    assert [bar.before for bar in plot.bars] == pytest.approx([full, full / 2, full * 4 / 1000], abs=0.01)
    assert [bar.after for bar in plot.bars] == pytest.approx([full * 0.3, full / 2, full * 4 / 1000], abs=0.01)
    assert [bar.value for bar in plot.bars] == ["1,000 → 300", "500", "4"]
    large = row("embedding", status="unsupported", rank=None, macs_before=0, macs_after=0)
    assert [bar.label for bar in bars.bar_plots([large])[0].bars] == ["embedding"]
    assert bars.bar_plots([]) == []


def test_three_hundred_layers_are_as_many_bars_to_one_scale() -> None:
    plots = bars.bar_plots([row(f"block.{i}", params_before=i + 1, params_after=1) for i in range(300)])
    drawn = [bar for plot in plots for bar in plot.bars]
    assert [bar.label for bar in drawn] == [f"block.{i}" for i in range(300)]
    assert max(len(plot.bars) for plot in plots) <= bars.MOST
    assert [bar.before for bar in drawn] == pytest.approx([312 * (i + 1) / 300 for i in range(300)], abs=0.01)
    assert plots[0].title.endswith(f"bars 1 to {len(plots[0].bars)} of 300")


def test_columns_are_shares_of_full_rank() -> None:
    rows = [norm("n"), row("a", rank=4), row("b", rank=None, status="kept"), row("c", rank=16, input_rank=8)]
    plot = columns.rank_plot(rows)
    assert plot is not None
    full = columns.BOTTOM - columns.TOP
    assert [column.height for column in plot.columns] == pytest.approx([full / 4, full, full], abs=0.01)
    assert [column.dense for column in plot.columns] == [False, True, False]
    assert [column.mark for column in plot.columns] == [None, None, columns.BOTTOM - full / 2]
    assert [label for _, label in plot.ticks] == ["2", "3", "4"]
    assert [c.title for c in plot.columns] == ["a: rank 4 of 16", "b: dense", "c: rank 16 of 16, input rank 8 of 16"]


def test_a_report_of_before_full_ranks_has_no_plot_of_them() -> None:
    old = {key: value for key, value in row("a").items() if not key.startswith("full")}
    assert columns.rank_plot([old]) is None
    text = report_page(report_of(old), "net")
    assert len(drawings(text)) == 1
    assert "No layer of this report has a full rank" in text
    assert Page(text).tables[1][1][4] == "4"


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
    made = {"seed": 7, "images": 1024, "batch_size": 64, "generator": "auto", "refit": True, "norms": True}
    page = Page(report_page(report_of(row("a"), made_with=made), "net"))
    assert page.facts["Made with"] == "images of calibration 1,024, in a batch 64, seed 7"


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
    assert page.facts["Leave-one-out accuracy, with adapted norms"] == "not measured"
    assert "as they were before the student was moved" in text
    assert len(page.tables[1]) == 3
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
