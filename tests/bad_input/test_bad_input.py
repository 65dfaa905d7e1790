"""Bad names, images and budgets: exit code 2 and one clear line. Each case names what a user did."""

import inspect
import json
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hypercompress
from hypercompress import Budget
from hypercompress.cli import main
from hypercompress.errors import BudgetError, NonFiniteError
from hypercompress.specs import Unit, require_budget
from hypercompress.specs.budget import require_share
from tests.bad_input.words import SVD, Refused, generate, gradient, network

SIZE = ("--input-size", "1", "32", "32", "--mean", "0.286", "--std", "0.353")


def test_an_unknown_model_name(refused: Refused, tmp_path: Path) -> None:
    line = refused("generate", "test_resnt", tmp_path / "s", "--no-pretrained", *SVD)
    assert "'test_resnt'" in line
    assert "did you mean test_resnet" in line


def test_a_fault_is_told_once(refused: Refused) -> None:
    for against in ((), ("--against", "resnet51_of_mine")):
        assert refused("evaluate", "resnet51_of_mine", "--data", "fashion_mnist_mini", *against).count("received") == 1


def test_an_empty_image_folder(refused: Refused, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    line = refused(*generate(tmp_path / "s", weights, *SVD, *SIZE, "--data", tmp_path / "photos"))
    assert f"{tmp_path / 'photos'}, which holds no images" in line


def test_unreadable_images_are_named_and_counted(
    capsys: pytest.CaptureFixture[str], weights: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    gradient(photos, 9)
    (photos / "broken.png").write_bytes((photos / "3.png").read_bytes()[:40])
    (photos / "text.jpg").write_text("no image")
    words = generate(tmp_path / "s", weights, *SVD, *SIZE, "--data", photos)
    assert main([str(word) for word in words]) == 0
    out, err = capsys.readouterr()
    assert err == f"warning: {photos}: skipped 2 of 11 images: broken.png, text.jpg\n"
    assert "of 9 images" in out
    words = ("evaluate", tmp_path / "s", "--data", photos, "--against", tmp_path / "s", "--json")
    assert main([str(word) for word in words]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["images"] == 9
    assert err.startswith("warning: ")


def test_no_readable_image_is_left(refused: Refused, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.jpg"):
        (tmp_path / "photos" / name).write_text("no image")
    line = refused(*generate(tmp_path / "s", weights, *SVD, *SIZE, "--data", tmp_path / "photos"))
    assert "none of 2 images can be read: a.png, b.jpg" in line


def test_too_few_images(refused: Refused, weights: Path, tmp_path: Path) -> None:
    gradient(tmp_path / "photos", 5)
    line = refused(*generate(tmp_path / "s", weights, *SVD, *SIZE, "--data", tmp_path / "photos"))
    assert "5 calibration images; expected at least 6" in line


@pytest.mark.parametrize("place", [0, 1, 5])  # held out to select and to confirm, and in the statistics
def test_calibration_images_that_are_no_numbers(place: int) -> None:
    batches = [torch.rand(4, 1, 32, 32) for _ in range(8)]
    batches[place][2, 0, 7, 7] = float("nan")
    with pytest.raises(NonFiniteError, match="expected finite values; check the calibration data"):
        hypercompress.compress(network(), Budget(params=0.5), batches, "kfac")


@pytest.mark.parametrize("option", ["--params", "--macs"])
@pytest.mark.parametrize("share", ["0", "1.5", "-0.2", "nan", "inf"])
def test_a_budget_out_of_range(refused: Refused, weights: Path, tmp_path: Path, option: str, share: str) -> None:
    line = refused(*generate(tmp_path / "s", weights, option, share, "--generator", "svd"))
    assert f"received a {option[2:]} budget of {float(share):g}; expected a share of the teacher above 0" in line


@pytest.mark.parametrize("share", ["0.5", True, torch.tensor(0.5), [0.5]])
def test_a_budget_that_is_no_number(share: object) -> None:
    with pytest.raises(BudgetError, match=re.escape(f"received a macs budget of {share!r}; expected a share of the")):
        require_share(Unit.MACS, share)  # what Budget calls; the tests' own type checks come before it


@pytest.mark.parametrize("share", [np.float32(0.5), np.float64(0.5), Fraction(1, 2)])
def test_a_budget_in_a_number_of_another_kind_is_kept_as_a_float(share: Any) -> None:
    budget = object.__new__(Budget)  # without the tests' own type checks, which come before it
    for unit in Unit:
        object.__setattr__(budget, unit.value, share if unit is Unit.MACS else None)
    budget.__post_init__()
    assert type(budget.share) is float
    assert budget == Budget(macs=0.5)


@pytest.mark.parametrize(("given", "advice"), [(0.25, 0.25), (50.0, 0.4), ("0.5", 0.4), (None, 0.4)])
def test_a_number_for_a_budget(given: object, advice: float) -> None:
    with pytest.raises(BudgetError, match=re.escape(f"received {given!r} as a budget; expected a Budget, which says")):
        require_budget(given)
    unchecked = inspect.unwrap(hypercompress.compress)
    with pytest.raises(BudgetError, match=re.escape(f"pass Budget(params={advice})")):
        unchecked(network(), given)


@pytest.mark.parametrize("option", ["--params", "--macs"])
def test_a_budget_that_cannot_be_reached(
    refused: Refused, weights: Path, tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("hypercompress.cli.generate.prepare", lambda *_, **__: pytest.fail("measuring began"))
        line = refused(*generate(tmp_path / "s", weights, option, "0.0001", "--generator", "svd"))
    found = re.search(r"expected between ([\d.]+) and 1", line)
    assert found is not None
    words = generate(tmp_path / "s", weights, option, found[1], "--generator", "svd")
    assert main([str(word) for word in words]) == 0  # the range that the message promises
