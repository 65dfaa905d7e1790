"""Drawings of the HTML page: they stay in their frames, and are to scale."""

from xml.etree import ElementTree

import pytest
from rich.cells import cell_len

from hypercompress.page import bars, columns, report_page
from tests.pages import SVG, Page, drawings, norm, report_of, row


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
