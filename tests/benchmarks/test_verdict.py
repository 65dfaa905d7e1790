"""The verdict's numbers on tables whose answers are known."""

import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.protocol import budgets, rows
from benchmarks.protocol.figures import colour, distilled_figure, free_figure
from benchmarks.protocol.gaps import Column, Gaps, mean, ratio
from benchmarks.protocol.listing import every_network, over_draws, refused, sizes
from benchmarks.protocol.verdict import KFAC, beside_kfac, verdict, with_images, without_images, worse
from benchmarks.shared.common import Results


class Table:
    """A table of gaps below a teacher of 0.9."""

    def __init__(self, folder: Path) -> None:
        self.results = Results(folder / "heldout.csv", rows.KEY, ())
        self.budgets = Results(folder / "heldout_budgets.csv", budgets.KEY, ())

    def put(self, teacher: str, method: str, gaps: list[float | None], **more: Any) -> None:
        place = {"unit": "params", "level": 0.8, "steps": 0, "statistics": "images", "share": 0.1, "note": "", **more}
        for seed, gap in enumerate(gaps):
            top1 = None if gap is None else 0.9 - gap
            row = {"teacher": teacher, "method": method, "seed": seed, "top1": top1, "top1_teacher": 0.9}
            self.results.add({**row, **place})

    @property
    def gaps(self) -> Gaps:
        return Gaps(self.results)


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path)


def line(text: str, start: str) -> list[str]:
    (found,) = (cells for cells in text.splitlines() if cells.startswith(start))
    return [part.strip() for part in found.strip("|").split("|")]


def test_mean_and_its_standard_error() -> None:
    assert mean([0.1, 0.2, 0.3]).value == pytest.approx(0.2)
    assert mean([0.1, 0.2, 0.3]).error == pytest.approx(0.1 / 3**0.5)
    assert math.isnan(mean([0.1]).error)
    assert mean([]).text() == "-"


def test_ratio_and_its_jackknife() -> None:
    pairs = [(1.0, 2.0), (3.0, 4.0), (2.0, 2.0)]
    parts = [5 / 6, 3 / 4, 4 / 6]  # each left out in turn
    centre = sum(parts) / 3
    found = ratio(pairs)
    assert found.value == pytest.approx(6 / 8)
    assert found.error == pytest.approx(math.sqrt(2 / 3 * sum((p - centre) ** 2 for p in parts)))
    # With equal denominators the jackknife is the standard error of the mean.
    same = [(a, 2.0) for a in (1.0, 2.0, 4.0)]
    assert ratio(same).error == pytest.approx(mean([0.5, 1.0, 2.0]).error)
    assert math.isnan(ratio([(0.1, 0.0)]).value)
    assert math.isnan(ratio([(0.1, 0.2)]).error)


def test_methods_are_compared_where_kfac_is(table: Table) -> None:
    table.put("a", "kfac", [0.01, 0.03], steps=100)
    table.put("b", "kfac", [0.04], steps=100)
    table.put("c", "kfac", [0.80], steps=100)  # of the rival there is nothing
    table.put("a", "random", [0.10], steps=100)
    table.put("b", "random", [0.20], steps=100)
    table.put("d", "random", [0.90], steps=100)  # of kfac there is nothing
    table.put("a", "random", [0.50], steps=100, unit="macs", level=0.5)
    table.put("a", "svd", [0.30], steps=20)
    text = beside_kfac(table.gaps)
    assert line(text, "| random | 100")[2:] == ["15.00 ± 5.00 against 3.00 ± 1.00 (2)", "-"]
    assert line(text, "| svd | 20")[2:] == ["-", "-"]
    assert "| kfac |" not in text
    table.put("a", "kfac", [0.25], steps=100, unit="macs", level=0.5)
    assert line(beside_kfac(table.gaps), "| random | 100")[3] == "50.00 against 25.00 (1)"


def test_goals_with_images(table: Table) -> None:
    for teacher, (kfac, ours) in {"a": (0.10, 0.05), "b": (0.20, 0.15)}.items():
        table.put(teacher, "kfac", [kfac, kfac])
        table.put(teacher, "hypernet", [ours, ours])
    table.put("a", "kfac", [0.1], steps=500)
    table.put("a", "hypernet", [0.085], steps=500)
    table.put("c", "kfac", [0.5])  # without a rival: left out
    text = with_images(table.gaps, KFAC)
    assert line(text, "| params 80% | 0")[2:] == ["2", "10.00 ± 5.00", "15.00 ± 5.00", "0.67 ± 0.12", "0.7: reached"]
    assert line(text, "| params 80% | 500")[2:] == ["1", "8.50", "10.00", "0.85", "0.8: NOT reached"]
    table.put("a", "kfac", [0.1], level=0.95)
    table.put("a", "hypernet", [0.0], level=0.95)
    text = with_images(table.gaps, KFAC)
    assert line(text, "| params 95%")[-1] == "-"  # no goal at this level
    assert "all of" not in text.split("| 500 |")[0]  # one budget has a goal at 0 steps


def test_all_budgets_of_a_goal_are_weighed_by_teacher(table: Table) -> None:
    for level, kfac, ours in ((0.8, 0.1, 0.1), (0.5, 0.3, 0.1)):
        table.put("a", "kfac", [kfac], level=level)
        table.put("a", "hypernet", [ours], level=level)
    assert line(with_images(table.gaps, KFAC), "| all of 80%, 50%")[3:] == ["10.00", "20.00", "0.50", "0.7: reached"]


def test_a_teacher_that_is_worse_is_named(table: Table) -> None:
    table.put("bad", "kfac", [0.10, 0.11, 0.12])
    table.put("bad", "hypernet", [0.12, 0.13, 0.15])  # 2, 2, 3 points: mean 2.33, error 0.33
    table.put("noisy", "kfac", [0.10, 0.10, 0.10])
    table.put("noisy", "hypernet", [0.10, 0.10, 0.13])  # mean 1, error 1
    table.put("equal", "kfac", [0.1, 0.1])
    table.put("equal", "hypernet", [0.1, 0.1])
    assert worse(table.gaps) == "* bad, params 80%: 2.33 ± 0.33 points worse"
    table.put("single", "kfac", [0.1])
    table.put("single", "hypernet", [0.3])
    assert worse(table.gaps).splitlines()[1:] == ["* 1 pairs of one seed have no standard error and cannot be judged"]


def test_the_way_without_images(table: Table) -> None:
    for teacher, best in {"a": 0.5, "b": 0.3, "c": 0.05}.items():
        table.put(teacher, "svd", [best + 0.1], statistics="none")
        table.put(teacher, "kfac-pink", [best, best], statistics="none")
        table.put(teacher, "hypernet", [0.2], statistics="none")
        table.put(teacher, "kfac", [0.1, 0.1])
    # a: 0.3 of 0.4, b: 0.1 of 0.2; c has nowhere to go.
    found = line(without_images(table.gaps), "| hypernet | params 80%")
    assert found[2:4] == ["2", "1"]
    assert found[7].startswith("0.67 ± ")
    assert found[8] == "0.5: reached"
    assert "kfac-synthetic" not in without_images(table.gaps)
    table.put("a", "kfac-synthetic", [0.4, 0.2], statistics="none")  # 0.2 of 0.4
    table.put("c", "kfac-synthetic", [0.4], statistics="none")
    table.put("a", "kfac-outputs", [0.2])
    found = line(without_images(table.gaps), "| kfac-synthetic | params 80%")
    assert found[2:4] == ["1", "1"]
    assert found[7].startswith("0.50")
    assert found[9] == "1.50"  # 0.3 of 0.2


def test_every_network_as_generated(table: Table) -> None:
    table.put("a", "svd", [0.5], statistics="none")
    table.put("a", "kfac-pink", [0.4, 0.2], statistics="none")  # the best closed form, mean over draws
    table.put("a", "kfac", [0.1, 0.2])
    table.put("a", "kfac", [0.0], steps=100)  # not as generated
    table.put("a", "kfac-noise", [0.3], statistics="none")
    table.put("b", "hypernet", [0.4], level=0.5, unit="macs")
    table.put("c", "random", [0.4])  # none of those that are shown
    found = [[cell.strip() for cell in cells.strip("|").split("|")] for cells in every_network(table.gaps).splitlines()]
    assert found[0][:3] == ["network (top-1)", "size", "no images: closed form"]
    assert found[2:] == [
        ["a (90.0)", "params 80%", "60.0", "-", "-", "60.0", "-", "75.0", "-", "-"],
        ["b (90.0)", "macs 50%", "-", "-", "-", "-", "-", "-", "50.0", "-"],
    ]


def test_deviation_over_draws_is_pooled(table: Table) -> None:
    table.put("a", "kfac", [0.10, 0.12])  # variance 2, one degree of freedom
    table.put("b", "kfac", [0.10, 0.11, 0.12])  # variance 1, two
    table.put("c", "kfac", [0.3])
    table.put("a", "kfac", [0.1, 0.9], steps=100)
    table.put("a", "svd", [0.3], level=0.5)
    assert line(over_draws(table.gaps), "| kfac |") == ["kfac", "images", f"{(4 / 3) ** 0.5:.1f}", "-"]
    assert "svd" not in over_draws(table.gaps)


def test_how_small_budgets_are(table: Table) -> None:
    for teacher, share in (("a", 0.02), ("b", 0.1), ("c", 0.03), ("d", None)):
        table.budgets.add({"teacher": teacher, "unit": "params", "level": 0.8, "share": share})
    assert line(sizes(table.budgets), "| params") == ["params 80%", "3", "3.0", "2.0", "10.0"]
    assert line(sizes(table.budgets, ["a", "b", "d"]), "| params")[1:3] == ["2", "6.0"]
    assert sizes(table.budgets, ["d"]) == "no budgets"


def test_how_often_the_guard_refused(table: Table) -> None:
    table.put("a", "hypernet", [0.1, 0.2], strength=0.0)
    table.put("a", "hypernet", [0.1], level=0.5, strength=1.0)
    table.put("b", "hypernet", [0.1], strength=1.0)
    table.put("b", "hypernet", [0.1], strength=None, level=0.95)
    table.put("b", "hypernet", [0.1], statistics="none", strength=1.0)
    table.put("b", "hypernet", [0.1], steps=20, strength=0.0)
    table.put("b", "kfac", [0.1], strength=0.0)
    found = refused(table.results)
    assert line(found, "| params 80%") == ["params 80%", "2", "3"]
    assert line(found, "| all") == ["all", "2", "4"]
    assert "95%" not in found
    assert line(refused(table.results, ["b"]), "| all") == ["all", "0", "1"]
    assert refused(table.results, ["c"]) == "no rows"


def test_a_verdict_of_some_teachers(table: Table) -> None:
    for teacher, gap in (("a", 0.1), ("b", 0.3)):
        table.put(teacher, "kfac", [gap])
        table.put(teacher, "hypernet", [0.1])
        table.put(teacher, "svd", [None], note=f"cannot {teacher}")
        table.budgets.add(
            {"teacher": teacher, "unit": "macs", "level": 0.5, "share": None, "kept": 0.7, "note": "easy"}
        )
    some, every = (verdict(table.budgets, table.results, only) for only in (["b"], None))
    assert line(some, "| params 80% | 0 |")[2:6] == ["1", "10.00", "30.00", "0.33"]
    assert "b, svd: cannot b" in some
    assert not any(text in some for text in ("a, macs", "cannot a", "| a ("))
    assert all(text in every for text in ("a, macs", "cannot a", "| a ("))


def test_what_is_missing_is_said(table: Table) -> None:
    table.budgets.add({"teacher": "a", "unit": "macs", "level": 0.5, "share": None, "kept": 0.7, "note": "too easy"})
    table.put("a", "torch-pruning", [None, None], note="cannot")
    table.put("a", "kfac", [None], level=0.5, share=None, note="no such budget")
    text = verdict(table.budgets, table.results)
    assert "a, macs, 50%: too easy (70.0%)" in text
    assert "a, torch-pruning: cannot (2 rows)" in text
    assert "no such budget" not in text
    assert "no rows of both" in text


def test_figures_are_written_whatever_is_there(table: Table, tmp_path: Path) -> None:
    table.put("a", "kfac", [0.1, 0.2])
    table.put("a", "kfac", [0.1], steps=100)
    table.put("a", "svd", [0.1], unit="macs", level=0.5, statistics="none")
    table.put("a", "random", [None], note="cannot")
    distilled_figure(table.results, tmp_path / "one.png")
    free_figure(table.results, tmp_path / "two.png")
    assert min((tmp_path / name).stat().st_size for name in ("one.png", "two.png")) > 1000
    assert colour("kfac") == "tab:blue"
    assert colour("kfac-pink") != colour("kfac-gauss")


def test_a_mean_is_over_budgets_where_every_column_is(table: Table) -> None:
    table.put("a", "kfac", [0.1])
    table.put("a", "kfac", [0.5], level=0.5)
    table.put("a", "svd", [0.3])
    gaps = table.gaps
    both = gaps.together(gaps.places, [Column("kfac"), Column("svd")])
    assert both == {"a": [pytest.approx(0.1), pytest.approx(0.3)]}
