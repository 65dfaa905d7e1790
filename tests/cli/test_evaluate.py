"""`hypercompress evaluate` on good input: its numbers are those of the library."""

import dataclasses
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import hypercompress
from hypercompress.cli.evaluate import _table
from hypercompress.data import Preprocess, loader, open_data
from hypercompress.saved.card import transfer_line
from tests.cli.words import ARGS, CALIBRATE, DATA, PRECISIONS, SIZE, Run, write_images


def test_evaluate_json_equals_an_independent_computation(
    run: Run, student: Path, weights: Path, teacher: tuple[object, ...]
) -> None:
    words = (*DATA, "--against", *teacher, "--images", 200, "--json", "--batch-size", 33, "--device", "cpu")
    code, out, err = run("evaluate", student, *words)
    assert (code, err, out.count("\n")) == (0, "", 1)
    result = json.loads(out)
    assert set(result) == {"top1", "top1_teacher", "agreement", "kl", "images", "seconds"}

    small = hypercompress.from_pretrained(student)
    dense, _ = hypercompress.models.load_model("test_resnet", checkpoint=weights, model_args=json.loads(ARGS))
    images = open_data("fashion_mnist_mini", Preprocess.of(small), train=False)
    x, y = next(iter(loader(images, batch_size=200, limit=200, seed=0)))
    with torch.no_grad():
        p, q = dense(x).double().softmax(1), small(x).double().softmax(1)
    assert result["images"] == 200
    assert result["seconds"] > 0
    assert result["top1"] == pytest.approx((q.argmax(1) == y).double().mean().item(), abs=1e-6)
    assert result["top1_teacher"] == pytest.approx((p.argmax(1) == y).double().mean().item(), abs=1e-6)
    assert result["agreement"] == pytest.approx((p.argmax(1) == q.argmax(1)).double().mean().item(), abs=1e-6)
    assert result["kl"] == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-4)


def test_evaluate_without_a_teacher(run: Run, student: Path) -> None:
    code, out, err = run("evaluate", student, *DATA, "--images", 50, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert result["top1_teacher"] is None
    assert result["agreement"] is None
    assert result["kl"] is None
    assert 0 <= result["top1"] <= 1
    code, out, err = run("evaluate", student, *DATA, "--images", 50)
    assert (code, err) == (0, "")
    assert "not measured" in out


def test_a_teacher_of_the_same_name_takes_the_students_arguments(run: Run, student: Path, weights: Path) -> None:
    words = (*DATA, "--against", "test_resnet", "--checkpoint", weights, "--images", 50)
    code, out, err = run("evaluate", student, *words)
    assert (code, err) == (0, "")
    assert "arguments of --against: " in out


def test_a_teacher_against_itself(run: Run, teacher: tuple[object, ...], tmp_path: Path) -> None:
    name, *rest = teacher
    words = ("--params", 1, "--generator", "kfac", *CALIBRATE)
    assert run("generate", name, tmp_path / "s", *rest, *words)[0] == 0
    code, out, _ = run("evaluate", tmp_path / "s", *DATA, "--against", *teacher, "--images", 50, "--json")
    assert code == 0
    result = json.loads(out)
    assert result["agreement"] == 1
    assert result["kl"] == pytest.approx(0, abs=1e-9)


def test_a_timm_model_can_be_evaluated(run: Run, teacher: tuple[object, ...]) -> None:
    code, out, err = run("evaluate", *teacher, *SIZE, *DATA, "--images", 50, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["images"] == 50


def test_an_average_of_the_weights_is_told(run: Run, weights: Path, tmp_path: Path) -> None:
    found = hypercompress.architecture.read_weights(weights)
    torch.save({"state_dict": found, "state_dict_ema": found}, tmp_path / "w.pth")
    words = ("--model-args", ARGS, *SIZE, *DATA, "--images", 50)
    for path, told in ((tmp_path / "w.pth", True), (weights, False)):
        code, out, err = run("evaluate", "test_resnet", "--checkpoint", path, *words)
        assert code == 0, err
        assert ("(their average: state_dict_ema)" in " ".join((out + err).split())) == told


def test_labels_of_folders_are_told_where_the_model_does_not_name_its_classes(
    run: Run, student: Path, tmp_path: Path
) -> None:
    for name in "abcdefghij":
        write_images(tmp_path / "photos" / name, 1)
    code, out, err = run("evaluate", student, "--data", tmp_path / "photos")
    assert (code, err) == (0, "")
    assert "labels: class folders in alphabetical order are taken as classes 0 to 9 (the model does not" in out
    assert "labels:" not in run("evaluate", student, *DATA, "--images", 50)[1], "these are numbered by who made them"


def test_folders_that_timm_numbers_otherwise_are_told(run: Run, student: Path, tmp_path: Path) -> None:
    for name in range(1, 11):
        write_images(tmp_path / "photos" / str(name), 1)
    code, out, err = run("evaluate", student, "--data", tmp_path / "photos")
    assert (code, err) == (0, "")
    told = " ".join(out.split())
    assert "its own): 1, 10, 2 ..., as torchvision sorts them; timm's loader takes 1, 2, 3 ...: top-1 is wrong" in told


def test_a_small_kl_is_not_shown_as_none() -> None:
    console = Console(file=(file := io.StringIO()), width=80)
    console.print(_table({"top1": 0.98765, "kl": 1.4567e-06, "agreement": None, "images": 5000}))
    shown = file.getvalue()
    assert all(word in shown for word in ("0.9877", "1.457e-06", "not measured", "5,000"))


def test_random_weights_are_told(run: Run, student: Path) -> None:
    words = (*DATA, "--images", 50, "--against", "test_resnet", "--no-pretrained")
    code, out, err = run("evaluate", student, *words)
    assert (code, err) == (0, "")
    assert f"model: student folder {student}" in out
    assert "against: test_resnet with random weights" in out


def test_unlabelled_images(run: Run, student: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "flat", 9)
    code, out, err = run("evaluate", student, "--data", tmp_path / "flat", "--against", student, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert (result["top1"], result["agreement"], result["images"]) == (None, 1, 9)
    code, _, err = run("evaluate", student, "--data", tmp_path / "flat")
    assert code == 2
    assert err.startswith("error: received images of")
    assert "without labels of the model's classes and no --against" in err


def test_more_classes_than_outputs_are_no_labels(run: Run, student: Path, tmp_path: Path) -> None:
    for name in "abcdefghijkl":
        write_images(tmp_path / "many" / name, 1)
    words = ("evaluate", student, "--data", tmp_path / "many")
    code, out, err = run(*words, "--against", student)
    assert (code, err) == (0, "")
    assert "top1: not measured (" in out
    code, _, err = run(*words)
    assert code == 2
    assert "received images of 12 classes for a model of 10 outputs" in err


def test_a_teacher_of_another_normalisation_gets_its_own_images(run: Run, student: Path, tmp_path: Path) -> None:
    """STUDENT is the teacher, said to want other images; what is given on the command line is for both."""
    small = hypercompress.from_pretrained(student)
    assert small.architecture is not None
    stated = {**small.architecture.pretrained_cfg, "mean": [0.0], "std": [0.1]}
    small.architecture = dataclasses.replace(small.architecture, pretrained_cfg=stated)
    small.save_pretrained(tmp_path / "other")
    words = ("evaluate", tmp_path / "other", *DATA, "--against", student, "--images", 50)
    code, out, _ = run(*words)
    assert code == 0
    assert "preprocessing of --against" in out
    assert "mean 0.286, std 0.353 (its own" in out
    found = json.loads(run(*words, "--json")[1])
    assert found["agreement"] < 1
    assert found["kl"] > 0

    wanted, given = (
        loader(open_data("fashion_mnist_mini", p, train=False), batch_size=50, limit=50) for p in both(small)
    )
    with torch.no_grad():
        p, q = (small.model.double()(next(iter(images))[0].double()).softmax(1) for images in (wanted, given))
    assert found["kl"] == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-3)

    result = json.loads(run(*words, "--mean", 0.2, "--std", 0.3, "--json")[1])
    assert result["kl"] == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_a_student_in_another_precision_takes_its_images_in_it(
    run: Run, student: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    hypercompress.from_pretrained(student).to(dtype).save_pretrained(tmp_path / "s")
    for one, other in ((tmp_path / "s", student), (student, tmp_path / "s")):
        code, out, err = run("evaluate", one, *DATA, "--against", other, "--images", 50, "--json")
        assert (code, err) == (0, "")
        assert json.loads(out)["kl"] == pytest.approx(0, abs=1e-3)
    code, out, err = run("evaluate", tmp_path / "s", *DATA, "--images", 50, "--json")
    assert (code, err) == (0, "")


def test_numbers_have_no_agreement(run: Run, student: Path, tmp_path: Path) -> None:
    """An argmax of numbers was compared, whatever the student's report said of its outputs."""
    small = hypercompress.from_pretrained(student)
    small.report["outputs"] = "numbers"
    small.save_pretrained(tmp_path / "s")
    words = (*DATA, "--images", 50, "--against", student, "--json")
    assert json.loads(run("evaluate", tmp_path / "s", *words)[1])["agreement"] is None
    assert json.loads(run("evaluate", student, *words)[1])["agreement"] == 1


def both(model: torch.nn.Module) -> tuple[Preprocess, Preprocess]:
    given = Preprocess.of(model)
    return dataclasses.replace(given, mean=(0.286,), std=(0.353,)), dataclasses.replace(given, mean=(0.0,), std=(0.1,))


def test_labels_of_another_number_of_classes_measure_nothing(run: Run, student: Path, tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write_images(tmp_path / "few" / name, 3)
    code, out, err = run("evaluate", student, "--data", tmp_path / "few", "--against", student)
    assert (code, err) == (0, "")
    assert "top1: not measured (2 classes in the data, 10 in the model)" in out
    code, _, err = run("evaluate", student, "--data", tmp_path / "few")
    assert code == 2
    assert "without labels of the model's classes" in err


def test_classes_are_compared_by_name(run: Run, weights: Path, tmp_path: Path) -> None:
    """A student that was moved to three classes is tried on two of them, and on one that it does not know."""
    for grey, name in enumerate("abc"):
        (tmp_path / "all" / name).mkdir(parents=True)
        for index in range(4):
            pixels = np.random.default_rng(index).integers(0, 56, (32, 32)) + 90 * grey
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "all" / name / f"{index}.png")
    words = ("--checkpoint", weights, "--model-args", ARGS, *SIZE, "--data", tmp_path / "all")
    assert run("transfer", "test_resnet", tmp_path / "moved", *words)[0] == 0
    whole = json.loads(run("evaluate", tmp_path / "moved", "--data", tmp_path / "all", "--json")[1])
    assert whole["top1"] == 1
    once = ("generate", tmp_path / "moved", tmp_path / "small", "--params", 0.9)
    twice = ("generate", tmp_path / "small", tmp_path / "smaller", "--params", 0.8)
    assert [run(*words)[0] for words in (once, twice)] == [0, 0]
    shutil.rmtree(tmp_path / "all" / "a")
    for name in ("small", "smaller"):  # made of the one that was moved
        code, _, err = run("evaluate", tmp_path / name, "--data", tmp_path / "all", "--json")
        assert (code, err) == (0, "")
    code, out, err = run("evaluate", tmp_path / "moved", "--data", tmp_path / "all", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["top1"] == 1
    assert "labels:" not in run("evaluate", tmp_path / "moved", "--data", tmp_path / "all")[1]
    (tmp_path / "all" / "b").rename(tmp_path / "all" / "x")
    words = ("--data", tmp_path / "all", "--against", tmp_path / "moved")
    code, out, err = run("evaluate", tmp_path / "moved", *words)
    assert (code, err) == (0, "")
    assert "top1: not measured (the model has no class x)" in out
    words = ("--data", tmp_path / "all", "--against", tmp_path / "smaller")
    assert "top1: not measured (the model has no class x)" in run("evaluate", tmp_path / "smaller", *words)[1]


def test_images_that_calibrated_the_student_are_told(
    run: Run, teacher: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, *rest = teacher
    monkeypatch.chdir(tmp_path)
    for part in ("flat", "other", "parts/train", "parts/val"):
        write_images(tmp_path / part, 12)
    words = (*rest, *SIZE, "--params", 0.5, "--generator", "svd")
    for data in ("flat", "parts"):
        assert run("generate", name, f"by-{data}", *words, "--data", data)[0] == 0
    said = []
    for student, data in (
        ("flat", tmp_path / "flat"),
        ("flat", "other"),
        ("parts", "parts"),
        ("parts", "parts/train"),
        ("parts", "flat"),
    ):
        code, out, _ = run("evaluate", f"by-{student}", "--data", data, "--against", name, *rest)
        assert code == 0
        if "some of these have calibrated the student" in out:
            said.append((student, data))
    assert said == [("flat", tmp_path / "flat"), ("parts", "parts/train")]
    write_images(tmp_path / "flat" / "train" / "a", 2)  # without the other split the folder cannot be read any more
    assert run("evaluate", "by-flat", "--data", "other", "--against", name, *rest)[0] == 0, "whatever became of them"


def test_images_that_moved_the_student_are_told_wherever_it_is_judged(
    run: Run, teacher: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that calibrated it before; paths were read from where the command ran."""
    name, *rest = teacher
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    for data in ("old", "new", "other"):
        for label in "ab":
            write_images(tmp_path / data / label, 6)
    assert run("generate", name, "small", *rest, *SIZE, "--params", 0.5, "--generator", "svd", "--data", "old")[0] == 0
    assert run("transfer", "small", "moved", "--views", 0, "--shots", 2, "--data", "new")[0] == 0
    report = json.loads((tmp_path / "moved" / "report.json").read_text())
    assert report["transfer"]["data"] == "new"
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "moved").glob("*.[jm][sd]*"))
    assert report["before"]["calibration"] == "old"
    for data in ("new", "/home/someone/new", "new:/home/someone"):
        assert "by 4 images of new:" in transfer_line(report["transfer"] | {"data": data})
    monkeypatch.chdir(tmp_path / "elsewhere")
    told = {"new": "some of these have moved the student", "old": "some of these have calibrated", "other": None}
    for data, said in told.items():
        code, out, _ = run("evaluate", "../moved", "--data", f"../{data}")
        assert code == 0
        assert ("some of these" in out) == (said is not None)
        assert said is None or said in out
