"""The program about networks of many classes: the classifier's statistics as seen, and completed."""

import copy
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from torch import nn

from benchmarks import few_images, many_classes, steady
from benchmarks.shared.common import Results
from hypercompress.architecture import Architecture
from hypercompress.specs import Budget
from hypercompress.student import Student
from lightning_modules.recipes import read_recipes


def test_students_are_made_with_and_without(
    network: tuple[nn.Module, Architecture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So small that the classifier, of ten classes only, is factored, too.
    monkeypatch.setattr(many_classes, "BUDGETS", (Budget(params=0.03), Budget(params=0.02)))
    model = copy.deepcopy(network[0])
    nn.init.normal_(model.get_parameter("fc.weight"), std=3.0)  # sure of its answers, unlike a fresh one
    Student(model, network[1]).save_pretrained(tmp_path / "zoo" / "teacher")
    (tmp_path / "zoo" / "zoo.csv").write_text("name,data\nteacher,digits\n")
    words = ["--root", "unused", "--teacher", str(tmp_path / "zoo" / "teacher"), "--images", "8", "32", "--out"]
    many_classes.main([*words, str(tmp_path)])
    results = Results(tmp_path / "many_classes.csv", many_classes.PAIRS.key)
    assert len(results.rows) == 2 * 2 * len({row["share"] for row in results.rows})
    kls = {
        (images, completed): [
            float(row["kl"]) for row in results.rows if (row["images"], row["completed"]) == (images, completed)
        ]
        for images in ("8", "32")
        for completed in ("False", "True")
    }
    assert kls["8", "False"] != kls["8", "True"]  # four images of ten classes
    assert kls["32", "False"] == pytest.approx(kls["32", "True"])  # 24 are enough: nothing is completed
    before = (tmp_path / "many_classes.csv").read_bytes()
    many_classes.main([*words, str(tmp_path)])
    assert (tmp_path / "many_classes.csv").read_bytes() == before


def test_the_verdict_has_a_line_for_each_number_of_images(tmp_path: Path) -> None:
    results = Results(tmp_path / "many_classes.csv", many_classes.PAIRS.key)
    for images, completed, kl in ((16, False, 0.4), (16, True, 0.1), (48, False, 0.1), (48, True, 0.2), (96, True, 1)):
        key = {"teacher": "a", "images": images, "unit": "params", "share": 0.4, "completed": completed}
        results.add({**key, "kl": kl, "agreement": 0.5})
    assert many_classes.PAIRS.verdict(results.rows) == [
        "16 images, 1 students: 0.25 of the KL (0 larger), agreement 50.0 -> 50.0 %",
        "48 images, 1 students: 2.00 of the KL (1 larger), agreement 50.0 -> 50.0 %",
    ]


def test_its_teachers_are_held_out_and_know_many_classes(root: Path) -> None:
    recipes = read_recipes(root / "benchmarks" / "many_classes.yaml")
    assert len({recipe.model for recipe in recipes}) == 5
    assert {(recipe.data, recipe.split) for recipe in recipes} == {("glyphs", "heldout")}
    for recipe in recipes:
        model = timm.create_model(recipe.model, pretrained=False, **recipe.model_args)
        assert model.eval()(torch.zeros(1, *recipe.pretrained_cfg["input_size"])).shape == (1, 136)


@pytest.mark.parametrize("program", [many_classes, steady, few_images])
def test_a_program_without_a_teacher_says_so(program: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["--root", "unused"])
    assert "--teacher" in capsys.readouterr().err.splitlines()[-1]
