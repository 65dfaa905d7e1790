"""What the benchmark programs share: sets, fidelity, budgets, results and tables."""

from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.shared.common import Results, Set, budget_of, fidelity, markdown, size_of, spread
from benchmarks.shared.distillation import from_random
from benchmarks.shared.sweep import KEY
from hypercompress.architecture import Architecture
from hypercompress.fidelity import compare
from hypercompress.inspection import inspect


def test_a_set_holds_the_teachers_own_logits(network: tuple[nn.Module, Architecture], images: Set) -> None:
    with torch.no_grad():
        torch.testing.assert_close(images.logits, network[0](images.images))
    assert fidelity(network[0], network[0], images).kl == 0.0


def test_fidelity_is_that_of_the_package(network: tuple[nn.Module, Architecture], images: Set) -> None:
    other = from_random(network[0], 3)
    ours, theirs = fidelity(network[0], other, images), compare(network[0], other, [(images.images, images.labels)])
    assert ours.top1_student == theirs.top1_student
    assert ours.agreement == theirs.agreement
    assert ours.kl == pytest.approx(theirs.kl, rel=1e-5)


def test_budget_of_the_factored_layers(network: tuple[nn.Module, Architecture], images: Set) -> None:
    spec = inspect(network[0], images.images[:2])
    dense = sum(layer.dense_params for layer in spec.candidates)
    assert budget_of(spec, 1.0).share == pytest.approx(1.0)
    assert budget_of(spec, 0.3).share * spec.params == pytest.approx(spec.params - 0.7 * dense)
    assert size_of(network[0], images.images[:2]) == (spec.params, spec.macs)


def test_results_replace_rows_of_other_weights(tmp_path: Path) -> None:
    results = Results(tmp_path / "r.csv", KEY)
    row = {"data": "images", "share": 0.05, "generator": "kfac", "seed": 0, "weights": "a", "top1": 0.5}
    results.add(row)
    again = Results(tmp_path / "r.csv", KEY)
    assert again.has(row)
    assert not again.has({**row, "weights": "b"})
    assert not again.has({**row, "share": 0.06})
    again.add({**row, "weights": "b", "top1": 0.25})
    assert Results(tmp_path / "r.csv", KEY).numbers("top1", generator="kfac") == [0.25]
    assert {"date", "commit", "hardware", "versions"} <= set(again.rows[0])


def test_rows_of_fewer_do_not_take_the_place_of_more(tmp_path: Path) -> None:
    results = Results(tmp_path / "r.csv", ("first",), ("weights", "episodes"), "episodes")
    row = {"first": 0, "weights": "a", "episodes": 100}
    results.add(row)
    assert results.has({**row, "episodes": 20})
    assert not results.has({**row, "episodes": 101})
    assert not results.has({**row, "episodes": 20, "weights": "b"})
    results.add({**row, "episodes": 20})
    assert [old["episodes"] for old in results.rows] == ["100"]
    other = Results(tmp_path / "other.csv", ("first",), ("weights", "episodes"), "episodes")
    other.add({**row, "episodes": 20})
    results.absorb(other.path)
    assert [old["episodes"] for old in results.rows] == ["100"]
    other.absorb(results.path)
    assert [old["episodes"] for old in other.rows] == ["100"], "more take the place of fewer"
    results.add({**row, "episodes": 20, "weights": "b"})
    assert [(old["weights"], old["episodes"]) for old in results.rows] == [("b", "20")], "made of something else"


def test_rows_of_other_columns_share_a_file(tmp_path: Path) -> None:
    results = Results(tmp_path / "r.csv", ("k",), ())
    results.add({"k": 1, "gone": 2})
    results.add({"k": 2, "new": 3})
    first, second = Results(tmp_path / "r.csv", ("k",), ()).rows
    assert [(row["k"], row["gone"], row["new"]) for row in (first, second)] == [("1", "2", ""), ("2", "", "3")]
    assert list(first)[:2] == ["k", "gone"]


def test_tables() -> None:
    assert spread([0.5], 1, 100) == "50.0"
    assert spread([]) == "-"
    assert spread([0.5, 0.7], 1, 100) == "60.0 ± 14.1"
    assert markdown(("a", "b"), [("1", "2")]) == "| a | b |\n| --- | --- |\n| 1 | 2 |"
