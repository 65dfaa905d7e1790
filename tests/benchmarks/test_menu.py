"""The program that compares forms: at equal cost, every row once."""

from pathlib import Path

from torch import nn

from benchmarks import (
    menu,
)
from benchmarks.shared.common import Results, Set
from hypercompress.architecture import Architecture
from hypercompress.preparation import prepare


def test_the_menu_is_compared_at_equal_cost(
    network: tuple[nn.Module, Architecture], images: Set, tmp_path: Path
) -> None:
    plans = [prepare(network[0], images.images.split(32), "kfac", seed=seed) for seed in range(2)]
    results = Results(tmp_path / "menu.csv", menu.KEY)
    menu.run("small", plans, images, "w", results)
    rows = results.rows
    assert {row["forms"] for row in rows} == set(menu.FORMS)
    assert all(row["both_sides"] == "0" for row in rows if row["forms"] == "one side")
    assert any(int(row["both_sides"]) > 0 for row in rows)
    for one in (row for row in rows if row["forms"] == "one side"):
        other = next(
            r for r in rows if r["forms"] != "one side" and all(r[k] == one[k] for k in ("unit", "share", "seed"))
        )
        assert float(other["predicted_kl"]) <= float(one["predicted_kl"]) * (1 + 1e-6)
        assert max(int(r[one["unit"]]) for r in (one, other)) <= float(one["share"]) * int(
            getattr(plans[0].spec, one["unit"])
        )
    before = (tmp_path / "menu.csv").read_text()
    menu.run("small", plans, images, "w", results)
    assert (tmp_path / "menu.csv").read_text() == before
    assert "one or both" in menu.table(results)
