"""``hypercompress transfer``: what it writes and says, the same numbers as `adapt`, and bad input in one line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from hypercompress import adapt, from_pretrained
from hypercompress.architecture import load_timm
from hypercompress.data import Preprocess, open_data
from hypercompress.report import bytes_of
from hypercompress.transfer import nearness, registry, views
from hypercompress.transfer.rates import CANDIDATES
from hypercompress.transfer.support import draw_shots
from hypercompress.transfer.tuning import Tuned
from tests.cli.words import PRECISIONS, Run

ARGS = ("--no-pretrained", "--model-args", '{"num_classes": 7, "in_chans": 1}')
SIZE = ("--input-size", "1", "32", "32", "--mean", "0.286", "--std", "0.353")


@pytest.fixture
def run(run: Run) -> Run:
    """`hypercompress transfer`, from one random state each time."""

    def call(*words: object) -> tuple[int, str, str]:
        torch.manual_seed(0)
        return run("transfer", *words)

    return call


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of a small grey model, so that runs can be compared."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model, _ = load_timm("test_resnet", model_args={"num_classes": 7, "in_chans": 1}, pretrained=False)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors"


def folder(place: Path, counts: dict[str, int], mode: str = "L") -> Path:
    """Class folders of images; each class has its own brightness."""
    random = np.random.default_rng(0)
    for index, (name, count) in enumerate(counts.items()):
        (place / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.clip(random.normal(60 + 60 * index, 30, (32, 32) if mode == "L" else (32, 32, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8), mode).save(place / name / f"{i}.png")
    return place


def test_the_student_is_that_of_adapt(run: Run, weights: Path, tmp_path: Path) -> None:
    given = ("--checkpoint", weights, *ARGS[1:], *SIZE, "--data", "digits", "--shots", 3, "--seed", 4)
    given = (*given, "--views", 0)  # views are drawn batch by batch, and the batches of a loader are others
    code, out, err = run("test_resnet", tmp_path / "out", *given, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report == json.loads((tmp_path / "out" / "report.json").read_text())
    told = report["transfer"]
    assert (told["ways"], told["images"], told["shots"], told["steps"]) == (10, 30, 3, 0)
    assert told["classes"] == [str(digit) for digit in range(10)]
    student = from_pretrained(tmp_path / "out")
    assert student.num_classes == 10
    assert student.pretrained_cfg["mean"] == (0.286,)
    model, architecture = load_timm(
        "test_resnet", checkpoint=weights, model_args={"num_classes": 7, "in_chans": 1}, pretrained=False
    )
    data = open_data("digits", Preprocess.of(model, (1, 32, 32), (0.286,), (0.353,)), train=True)
    chosen = draw_shots(data.labels, 3, 4).tolist()
    images: Tensor = torch.stack([data[i][0] for i in chosen])
    wanted = adapt(model, images, data.labels[chosen], architecture=architecture, views=0)
    torch.testing.assert_close(student.eval()(images), wanted(images), rtol=1e-2, atol=1e-2)


def test_it_is_deterministic_and_a_student_folder_can_be_moved_on(run: Run, weights: Path, tmp_path: Path) -> None:
    given = ("--checkpoint", weights, *ARGS[1:], *SIZE, "--data", "digits", "--shots", 2, "--steps", 2)
    for name in ("a", "b"):
        code, out, err = run("test_resnet", tmp_path / name, *given)
        assert (code, err) == (0, "")
    first, second = (from_pretrained(tmp_path / name).state_dict() for name in ("a", "b"))
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    for words in ("leave-one-out accuracy", "kept", "support: 20 of 1437 images, 10 classes", "saved:"):
        assert words in out
    data = folder(tmp_path / "data", {"dark": 4, "light": 4})
    code, out, _ = run(tmp_path / "a", tmp_path / "on", "--data", data, "--json")
    assert code == 0
    assert json.loads(out)["before"]["transfer"]["ways"] == 10
    assert json.loads(out)["transfer"]["images"] == 8
    assert from_pretrained(tmp_path / "on").num_classes == 2


@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_a_student_in_another_precision_stays_in_it(
    run: Run, weights: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    given = ("--data", "digits", "--shots", 2, "--steps", 2)
    first = ("--checkpoint", weights, *ARGS[1:], *SIZE, *given)
    assert run("test_resnet", tmp_path / "a", *first)[0] == 0
    from_pretrained(tmp_path / "a").to(dtype).save_pretrained(tmp_path / "s")
    code, _, err = run(tmp_path / "s", tmp_path / "out", *given)
    assert (code, err) == (0, "")
    moved = from_pretrained(tmp_path / "out")
    assert next(moved.parameters()).dtype is dtype
    sizes = [bytes_of(from_pretrained(tmp_path / name)) for name in ("s", "out")]
    assert [moved.report[side]["bytes"] for side in ("teacher", "student")] == sizes
    assert all(bool(parameter.isfinite().all()) for parameter in moved.parameters())


def test_grey_images_become_what_a_colour_backbone_takes(run: Run, tmp_path: Path) -> None:
    """`Preprocess` brings every image to the model's channels: grey to three equal ones, colour to grey."""
    data = folder(tmp_path / "grey", {"dark": 3, "light": 3})
    code, out, _ = run("test_resnet", tmp_path / "colour", "--no-pretrained", "--data", data, "--json")
    assert code == 0
    assert json.loads(out)["transfer"]["images"] == 6
    data = folder(tmp_path / "rgb", {"dark": 3, "light": 3}, "RGB")
    assert run("test_resnet", tmp_path / "one", *ARGS, *SIZE, "--data", data, "--json")[0] == 0


def test_an_unreadable_image_is_left_out_and_named(run: Run, tmp_path: Path) -> None:
    data = folder(tmp_path / "data", {"dark": 3, "light": 3})
    (data / "dark" / "broken.png").write_bytes(b"no image")
    code, out, err = run("test_resnet", tmp_path / "out", *ARGS, *SIZE, "--data", data, "--json")
    assert code == 0
    assert json.loads(out)["transfer"]["images"] == 6
    assert err.count("\n") == 1
    assert "skipped 1 of 7 images: dark/broken.png" in err


def test_one_image_a_class_is_told(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "RELEASED", tmp_path / "none")
    data = folder(tmp_path / "data", {"dark": 1, "light": 1})
    code, out, _ = run("test_resnet", tmp_path / "out", *ARGS, *SIZE, "--data", data)
    assert code == 0
    assert "unknown" in out
    assert "none released" in out


def test_views_are_told_and_counted(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views, "MOVED", -1.0)  # the weights are random, and features hardly move
    given = (*ARGS, *SIZE, "--data", "digits", "--shots", 2, "--no-levels")
    out = run("test_resnet", tmp_path / "told", *given)[1]
    assert "and 10 views" in out, "20 images"
    told = json.loads(run("test_resnet", tmp_path / "out", *given, "--views", 3, "--json")[1])["transfer"]
    assert (told["views"]["count"], told["passes"]) == (3, 5)
    told = json.loads(run("test_resnet", tmp_path / "none", *given, "--views", 0, "--json")[1])["transfer"]
    assert told["views"] == {"count": 0, "kept": False, "why": "not asked for", "moved": None, "in_steps": 0}
    assert told["passes"] == 2


def test_steps_tune_what_tune_says(run: Run, tmp_path: Path) -> None:
    given = (*ARGS, *SIZE, "--data", "digits", "--shots", 2, "--steps", 1, "--json")
    kinds = {}
    assert "1 step on all parameters" in run("test_resnet", tmp_path / "told", *given[:-1])[1]
    for what in Tuned:
        code, out, _ = run("test_resnet", tmp_path / what, *given, "--tune", what)
        assert code == 0
        kinds[what] = json.loads(out)["transfer"]
    assert {what: told["tuned"] for what, told in kinds.items()} == {what: str(what) for what in Tuned}
    for what, told in kinds.items():
        assert (told["rate"], told["rates"]) == (CANDIDATES[what][0], []), "one step is worth no choice"


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ({"only": 3}, (), "received a support set of 1 class; expected at least two"),
        (
            {"train/a": 3, "train/b": 0, "train/c": 2, "val/b": 1},
            (),
            "received no support image of class b; expected at least one of each",
        ),
        ({"a": 3, "b": 2}, ("--shots", 3), "received 3 shots for classes with fewer images: b (2)"),
        ({"a": 3, "b": 2}, ("--shots", 0), "received --shots 0; expected a whole number from 1"),
        ({"a": 3, "b": 2}, ("--steps", -1), "received --steps -1; expected a whole number from 0"),
        ({"a": 3, "b": 2}, ("--network", "nothing"), "received the transfer network 'nothing'; expected auto, none or"),
        (
            {"train/a": 2, "train/b": 2, "val/a": 1, "val/c": 1},
            (),
            "with classes c that",
        ),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    counts: dict[str, int], options: tuple[Any, ...], message: str, run: Run, tmp_path: Path
) -> None:
    data = folder(tmp_path / "data", counts)
    code, _, err = run("test_resnet", tmp_path / "out", *ARGS, *SIZE, "--data", data, *options)
    assert code == 2
    assert err.startswith("error: received ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "out").exists()


def test_unlabelled_images_are_refused(run: Run, tmp_path: Path) -> None:
    data = folder(tmp_path / "data", {"a": 3}) / "a"
    code, _, err = run("test_resnet", tmp_path / "out", *ARGS, *SIZE, "--data", data)
    assert code == 2
    assert f"received the unlabelled images of {data}; expected labelled ones" in err


def test_labels_of_a_set_are_those_of_its_images(tmp_path: Path) -> None:
    preprocess = Preprocess((1, 8, 8), (0.0,), (1.0,))
    data = open_data(str(folder(tmp_path / "data", {"a": 3, "b": 2})), preprocess, train=True)
    assert data.labels.tolist() == [data[i][1] for i in range(len(data))] == [0, 0, 0, 1, 1]
    part = data.only([4, 0])
    assert part.labels.tolist() == [1, 0]
    assert torch.equal(part[0][0], data[4][0])
    assert len(part) == 2


@pytest.mark.parametrize(("asked", "share"), [((), 0.5), (("--follow", 0.25), 0.25), (("--follow", 1), 1.0)])
def test_steps_are_followed_half_of_the_way_on_a_near_task(
    asked: tuple[object, ...], share: float, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Near: the model answers new classes less alike than the bar, which here everything is below."""
    monkeypatch.setattr(nearness, "BAR", 1e9)
    given = (*ARGS, *SIZE, "--data", "digits", "--shots", 2, "--steps", 1, *asked)
    code, out, _ = run("test_resnet", tmp_path / "a", *given)
    assert code == 0
    assert json.loads((tmp_path / "a" / "report.json").read_text())["transfer"]["followed"] == share
    assert ("of the way" in " ".join(out.split())) == (share < 1)


@pytest.mark.parametrize("share", [0, -1, 1.5, "nan"])
def test_a_share_of_the_way_that_is_none(share: object, run: Run, tmp_path: Path) -> None:
    code, out, err = run("test_resnet", tmp_path / "a", *ARGS, "--data", "digits", "--steps", 1, "--follow", share)
    assert (code, out) == (2, "")
    assert err.startswith("error: received --follow")
    assert "expected a share in (0, 1]" in err


@pytest.mark.parametrize(("option", "value"), [("--follow", 0.5), ("--tune", "norms"), ("--tune", "all")])
def test_there_are_steps_for_what_is_said_of_them(option: str, value: object, run: Run, tmp_path: Path) -> None:
    code, out, err = run("test_resnet", tmp_path / "a", *ARGS, "--data", "digits", option, value)
    assert (code, out) == (2, "")
    assert err == f"error: received {option} without --steps; expected steps that it is for; pass --steps too\n"
