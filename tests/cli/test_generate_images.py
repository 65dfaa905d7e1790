"""What `hypercompress generate` calibrates on: images of a folder, few of them, of another kind, made ones, noise."""

import json
import re
from pathlib import Path

import pytest

from hypercompress.curvature.steadying import FEW
from tests.cli.words import CALIBRATE, DATA, SIZE, Run, write_images


def test_generate_makes_its_own_images(run: Run, teacher: tuple[object, ...], tmp_path: Path) -> None:
    """The whole pipeline runs on them: statistics, guard, measured fidelity, and the report says what they are."""
    name, *rest = teacher
    words = ("generate", name, tmp_path / "s", *rest, "--params", 0.3, *SIZE)
    code, out, err = run(*words, "--data", "synthetic:24")
    assert (code, err) == (0, "")
    assert f"images: 24 take {160 * 24 + 80 * 24:,} forward and backward passes" in out
    assert re.search(r"calibration: 24 synthetic images \(matched to the moments of \d+ BatchNorms\)", out)
    assert "held-out synthetic images" in out
    report = json.loads((tmp_path / "s" / "report.json").read_text())
    assert report["calibration"] == "synthetic:24"
    assert (report["made_with"]["images"], report["made_with"]["batch_size"]) == (None, 32)
    assert report["fidelity"]["images"] > 0
    assert "calibrated on synthetic:24" in (tmp_path / "s" / "README.md").read_text()
    code, out, _ = run("report", tmp_path / "s")
    assert "calibrated on synthetic:24" in out
    code, out, _ = run(*words[:2], tmp_path / "blind", *words[3:], "--generator", "svd", "--json")
    assert json.loads(out)["calibration"] is None


def test_generate_calibrates_on_noise_with_the_norms_renormalised(
    run: Run, teacher: tuple[object, ...], tmp_path: Path
) -> None:
    """It says what was done, and claims no fidelity: what noise shows is no behaviour of the model that there is."""
    name, *rest = teacher
    words = ("generate", name, tmp_path / "s", *rest, "--params", 0.3, *SIZE, "--data", "noise:24")
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert re.search(r"calibration: 24 images of 1/f noise \(\d+ BatchNorms renormalised\)", out)
    assert "generator: kfac (chosen by auto)" in out
    assert "held-out" not in out
    report = json.loads((tmp_path / "s" / "report.json").read_text())
    assert (report["calibration"], report["renormalized"]) == ("noise:24", True)
    assert set(report["fidelity"].values()) == {None}
    told = "calibrated on noise:24, its BatchNorms renormalised meanwhile"
    assert f"It was {told}.\n" in (tmp_path / "s" / "README.md").read_text()
    code, out, _ = run("report", tmp_path / "s")
    assert told in out


def test_generate_renormalises_to_images_of_another_kind(run: Run, teacher: tuple[object, ...], tmp_path: Path) -> None:
    name, *rest = teacher
    words = ("generate", name, tmp_path / "s", *rest, "--params", 0.3, "--renormalize")
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert err == (
        "error: received --renormalize without --data; expected images whose moments the BatchNorms take; pass a "
        "folder of any images, or leave --renormalize out\n"
    )
    code, _, err = run(*words, "--data", "synthetic:24")
    assert code == 2
    assert "expected images that have not; drop --renormalize" in err
    code, _, err = run(*words, *CALIBRATE, "--search", 1)
    assert code == 2
    assert "received --search with images of another kind" in err
    code, _, err = run(*words[:-1], "--data", "noise", "--pareto")
    assert code == 2
    assert "received --pareto with images of another kind than the model's own" in err
    code, out, err = run(*words, *CALIBRATE)
    assert (code, err) == (0, "")
    assert re.search(r"BatchNorms: \d+ to renormalise to these images", out)
    report = json.loads((tmp_path / "s" / "report.json").read_text())
    assert report["renormalized"] is True
    assert report["made_with"]["renormalize"] is True
    assert report["fidelity"]["top1_student"] is None


def test_generate_without_data_calibrates_on_noise_and_says_so(
    run: Run, teacher: tuple[object, ...], tmp_path: Path
) -> None:
    """As with --data noise, but for what the report says was asked; any other generator reads the weights alone."""
    name, *rest = teacher
    made = {}
    for folder, words in {"none": (), "noise": ("--data", "noise"), "svd": ("--generator", "svd")}.items():
        code, out, err = run("generate", name, tmp_path / folder, *rest, *SIZE, "--params", 0.3, *words)
        assert (code, err) == (0, "")
        made[folder] = out, json.loads((tmp_path / folder / "report.json").read_text())
    out, report = made["none"]
    assert "no data: 1024 images of 1/f noise stand in, 15 BatchNorms renormalised to it; closer: --data DATA" in out
    assert "faster, and mostly further away: --generator svd" in out
    assert "generator: kfac (chosen by auto)" in out
    assert (report["calibration"], report["renormalized"], report["generator"]["name"]) == ("noise:1024", True, "kfac")
    models = [(tmp_path / folder / "model.safetensors").read_bytes() for folder in ("none", "noise", "svd")]
    assert models[0] == models[1] != models[2]
    out, report = made["svd"]
    assert "no data: the weights are read alone; without --generator it is slower and mostly closer" in out
    assert report["calibration"] is None
    assert "renormalized" not in report


def test_generate_without_data_and_without_norms(run: Run, tmp_path: Path) -> None:
    """Noise as it is, and nothing that it shows is claimed of the model."""
    words = ("--no-pretrained", "--params", 0.5, "--model-args", '{"img_size": 32, "patch_size": 8}')
    code, out, err = run("generate", "test_vit", tmp_path / "s", *words)
    assert (code, err) == (0, "")
    assert "no data: 1024 images of 1/f noise stand in; closer: --data DATA, images of its own kind; faster" in out
    assert "generator: kfac (chosen by auto)" in out
    report = json.loads((tmp_path / "s" / "report.json").read_text())
    assert (report["calibration"], report["predicted_kl"], report["fidelity"]["kl"]) == ("noise:1024", None, None)
    assert "renormalized" not in report


def test_steady_mixes_noise_in_and_says_so(run: Run, teacher: tuple[object, ...], tmp_path: Path) -> None:
    name, *rest = teacher
    words = ("generate", name, tmp_path / "s", *rest, "--params", 0.3, "--steady")
    for given, told in ((("--data", "synthetic:24"), "--data synthetic:24"), ((), "no --data")):
        code, _, err = run(*words, *given)
        assert code == 2
        assert f"received --steady with {told}; expected a few images of the model's own kind" in err
    code, out, err = run(*words, *CALIBRATE, "--generator", "kfac")
    assert code == 0, err
    assert "few images" not in out
    assert "noise: 1024 images of 1/f noise steady the statistics, weighing as much as 8" in out
    report = json.loads((tmp_path / "s" / "report.json").read_text())
    assert 0 < report["noise_share"] < 0.5
    assert report["made_with"]["steady"] is True


@pytest.mark.parametrize(("count", "told"), [(FEW, True), (FEW + 16, False)])
def test_few_images_are_told_to_be_steadied(
    run: Run, teacher: tuple[object, ...], tmp_path: Path, count: int, told: bool
) -> None:
    name, *rest = teacher
    words = ("generate", name, tmp_path / "s", *rest, *SIZE, *DATA, "--params", 0.3, "--generator", "kfac")
    _, out, _ = run(*words, "--images", count)
    assert ("few images: with so few --steady is mostly closer" in out) is told


def test_of_hundreds_of_classes_fewer_images_are_few(run: Run, tmp_path: Path) -> None:
    write_images(tmp_path / "photos", 32)
    words = ("generate", "test_resnet", tmp_path / "s", "--no-pretrained", "--input-size", 3, 32, 32)
    words = (*words, "--data", tmp_path / "photos", "--params", 0.5, "--generator", "svd", "--no-refit", "--overwrite")
    for classes, images, told in ((1000, 32, False), (1000, 16, True), (100, 32, True)):
        code, out, err = run(*words, "--model-args", f'{{"num_classes": {classes}}}', "--images", images)
        assert code == 0, err
        assert ("few images" in out) is told


def test_prior_is_not_asked_of_renormalised_moments(run: Run, teacher: tuple[object, ...], tmp_path: Path) -> None:
    name, *rest = teacher
    words = ("--params", 0.3, "--generator", "prior")
    code, out, err = run("generate", name, tmp_path / "s", *rest, *words, "--data", "noise")
    assert (code, out) == (2, "")
    assert err.startswith(
        "error: received --generator prior with images of another kind than the model's own; expected"
    )
    assert run("generate", name, tmp_path / "s", *rest, *words)[0] == 0


@pytest.mark.parametrize("data", ["synthetic:", "synthetic:5", "synthetic:many", "synthetic:-1", "noise:5"])
def test_generate_refuses_a_count_of_images_that_is_none(run: Run, tmp_path: Path, data: str) -> None:
    code, out, err = run("generate", "test_resnet", tmp_path / "s", "--params", 0.3, "--data", data)
    kind = data.partition(":")[0]
    assert (code, out) == (2, "")
    assert err == (
        f"error: received data {data!r}; expected {kind} or {kind}:COUNT with at least 6 images; pass {kind}:256\n"
    )


def test_only_generate_takes_images_that_are_made(run: Run, student: Path) -> None:
    for kind in ("synthetic", "noise"):
        code, _, err = run("evaluate", student, "--data", f"{kind}:64")
        assert code == 2
        assert f"expected real images: made ones only calibrate generate; pass a folder (./{kind} if it is one)" in err


def test_generate_reads_the_train_split_and_evaluate_the_other(
    run: Run, teacher: tuple[object, ...], tmp_path: Path
) -> None:
    for split, count in (("train", 8), ("val", 3)):
        for label, name in enumerate(("cat", "dog")):
            write_images(tmp_path / "photos" / split / name, count, seed=label)
    name, *rest = teacher
    words = ("--params", 0.5, "--generator", "kfac", *SIZE, "--data", tmp_path / "photos")
    code, out, err = run("generate", name, tmp_path / "s", *rest, *words)
    assert (code, err) == (0, "")
    assert "calibration: 16 of 16 images" in out
    assert "top1: not measured (2 classes in the data, 10 in the model)" in out
    fidelity = json.loads((tmp_path / "s" / "report.json").read_text())["fidelity"]
    assert (fidelity["top1_teacher"], fidelity["top1_student"]) == (None, None)
    assert fidelity["agreement"] is not None
    code, out, err = run("evaluate", tmp_path / "s", "--data", tmp_path / "photos", "--against", tmp_path / "s")
    assert (code, err) == (0, "")
    assert "2 classes in the data, 10 in the model" in out
    assert re.search(r"images\W+6\W", out)


def test_few_images_are_cut_such_that_none_is_alone(run: Run, teacher: tuple[object, ...], tmp_path: Path) -> None:
    name, *rest = teacher
    for count, (used, size) in {7: (6, 2), 33: (32, 2), 96: (96, 6), 97: (96, 6)}.items():
        words = ("--params", 0.5, "--generator", "svd", *SIZE, *DATA, "--images", count, "--overwrite")
        code, out, err = run("generate", name, tmp_path / "s", *rest, *words)
        assert (code, err) == (0, "")
        assert f"calibration: {used} of 4096 images of fashion_mnist_mini, in batches of {size}\n" in out
