"""The ResNet-18 program and its pilot: every row once, and what a row holds."""

import csv
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import (
    pilot,
    resnet18,
)
from benchmarks.shared.common import Results, Set, budget_of, fidelity
from benchmarks.shared.distillation import PILOT, PILOT_KEY, RECIPES, Recipe, best_recipe
from benchmarks.shared.sweep import DATA, Generators
from hypercompress.architecture import Architecture
from hypercompress.compress import finish
from hypercompress.generator import Hypernetwork, save_hypernetwork
from hypercompress.synthetic.inversion import synthesize

TINY = Recipe("adamw", 1e-3, steps=3, batch=16)


@pytest.fixture(scope="module")
def hypernet(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("hypernet")
    save_hypernetwork(Hypernetwork(), folder)
    return str(folder)


@pytest.fixture
def bench(
    network: tuple[nn.Module, Architecture], images: Set, hypernet: str, monkeypatch: pytest.MonkeyPatch
) -> resnet18.Bench:
    model, architecture = network
    monkeypatch.setattr(resnet18, "synthesize", partial(synthesize, images=64, steps=4))
    return resnet18.Bench(model, architecture, images, images, "abc", Generators(hypernet), 48, TINY, 12)


def test_resnet18_makes_every_row_once(bench: resnet18.Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resnet18, "LARGER", (100_000,))
    names = [*resnet18.WITH_DATA, "prior", *resnet18.DISTILLED]
    resnet18.run(bench, tmp_path, 1, names, (0.5,), 0.5)
    files = ("resnet18.csv", "resnet18_distilled.csv", "resnet18.png")
    assert {path.name for path in tmp_path.iterdir()} == set(files)
    with (tmp_path / files[0]).open() as file:
        rows = list(csv.DictReader(file))
    made = {(row["data"], row["generator"]) for row in rows}
    assert made == {(data, name) for data, names in DATA.items() for name in names}
    with (tmp_path / files[1]).open() as file:
        after = list(csv.DictReader(file))
    assert {row["start"] for row in after} == set(resnet18.DISTILLED)
    small = {row["start"]: int(row["params"]) for row in after if row["size"] == "0.5"}
    assert small["random"] == small["kfac"] <= small["torch-pruning"]
    before = [(tmp_path / name).read_bytes() for name in files[:2]]
    resnet18.run(bench, tmp_path, 1, names, (0.5,), 0.5)
    assert [(tmp_path / name).read_bytes() for name in files[:2]] == before


def test_a_row_holds_what_a_user_gets(bench: resnet18.Bench, images: Set) -> None:
    sweep, plan = bench.sweep((0.5,)), replace(bench.measure("images", 0), generator=bench.generators.load("kfac"))
    row, student = sweep.student(plan, 0.5), finish(plan, budget_of(plan.spec, 0.5), architecture=bench.architecture)
    assert row is not None
    assert row["norms"] == student.report["norms"]
    assert row["kl"] == pytest.approx(fidelity(bench.teacher, student, images).kl, rel=1e-5)


def test_the_pilot_keeps_images_out(bench: resnet18.Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resnet18, "LARGER", ())
    monkeypatch.setattr(pilot, "DISTILLED_SHARE", 0.5)
    monkeypatch.setattr(pilot, "kept_out", lambda train: (train.subset(slice(0, 64)), train.subset(slice(64, 96))))
    results = Results(tmp_path / PILOT, PILOT_KEY)
    pilot.run(bench, results, 1, [TINY])
    assert [row["start"] for row in results.rows] == list(resnet18.DISTILLED)


def test_each_start_gets_the_recipe_that_did_best_on_average(tmp_path: Path) -> None:
    results = Results(tmp_path / PILOT, PILOT_KEY)
    with pytest.raises(LookupError, match=r"weights: none; expected some with w; run benchmarks\.pilot first"):
        best_recipe(results, "kfac", "w")
    scores = {("kfac", 0): (0.5, 0.9, 0.1), ("kfac", 1): (0.8, 0.3, 0.1), ("random", 0): (0.1, 0.2, 0.3)}
    for (start, seed), numbers in scores.items():
        for recipe, top1 in zip(RECIPES, numbers, strict=True):
            results.add({"recipe": str(recipe), "start": start, "seed": seed, "weights": "w", "top1": top1})
    assert best_recipe(results, "kfac", "w") == RECIPES[0]
    assert best_recipe(results, "random", "w") == RECIPES[2]


def test_the_pilot_of_another_teacher_chooses_no_recipe(bench: resnet18.Bench, tmp_path: Path) -> None:
    """It has run for two seeds of another teacher, and then for one of this: the second seed is the other's still."""
    found = Results(tmp_path / PILOT, PILOT_KEY)
    for seed, weights, recipe, top1 in ((0, "abc", 0, 0.7), (0, "abc", 1, 0.6), (1, "other", 2, 0.99)):
        row = {"recipe": str(RECIPES[recipe]), "start": "kfac", "seed": seed, "weights": weights, "top1": top1}
        found.add(row)
    assert best_recipe(found, "kfac", "abc") == RECIPES[0]
    assert "| kfac | 70.00 | 60.00 | - |" in pilot.table(bench, found)
    with pytest.raises(LookupError, match=r"these weights: abc, other; expected some with new; .* this --teacher"):
        best_recipe(found, "kfac", "new")


def test_the_pilot_is_the_one_beside_the_results_or_else_the_published_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    published = best_recipe(Results(resnet18.RESULTS / PILOT, PILOT_KEY), "kfac")
    assert resnet18.found_recipe(tmp_path, "kfac", "abc") == published
    assert (
        f"kfac: no pilot of these weights in {tmp_path}; by {published}, the best for those of"
        in capsys.readouterr().out
    )
    own = Results(tmp_path / PILOT, PILOT_KEY)
    own.add({"recipe": str(RECIPES[2]), "start": "kfac", "seed": 0, "weights": "abc", "top1": 0.5})
    assert resnet18.found_recipe(tmp_path, "kfac", "abc") == RECIPES[2] != published
    assert capsys.readouterr().out == ""


def test_kept_out_images_are_others() -> None:
    every = torch.arange(20.0)
    train, test = pilot.kept_out(Set(every, every, every), 5)
    assert sorted([*train.images.tolist(), *test.images.tolist()]) == every.tolist()
    assert len(test) == 5
