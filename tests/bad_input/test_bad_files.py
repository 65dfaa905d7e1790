"""Checkpoints and folders that are not what they should be: exit code 2 and one clear line."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hypercompress.cli import checks, inputs
from hypercompress.data import expanded
from hypercompress.errors import ModelError
from hypercompress.saved.artefact import REPORT
from tests.artefacts import write
from tests.bad_input.words import SVD, Refused, generate, network


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_that_is_no_student(refused: Refused, tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "folder").mkdir()
    line = refused("evaluate", tmp_path / "folder", "--data", "fashion_mnist_mini")
    assert ("no student folder" if there else "does not exist") in line


@pytest.mark.parametrize("data", ["", "~nobody-of-this-name/photos"])
def test_data_that_is_nowhere(refused: Refused, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty, as of an unset variable, it is not the working folder; nor has an unknown user a home."""
    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8)).save(tmp_path / "1.png")
    assert f"received data {data!r}" in refused("generate", "test_resnet", "s", "--params", "0.5", "--data", data)


def test_a_home_that_is_there_as_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert expanded("~").is_absolute()
    (tmp_path / "~root").mkdir()
    assert expanded("~root") == Path("~root")


def test_a_student_calibrated_in_a_home_of_another_machine(tmp_path: Path) -> None:
    write(tmp_path / "s")
    report = {"calibration": "~nobody-of-this-name/photos"}
    (tmp_path / "s" / REPORT).write_text(json.dumps(report))
    assert not inputs.seen_before(str(tmp_path / "s"), str(tmp_path))


def test_a_checkpoint_that_does_not_fit(refused: Refused, tmp_path: Path) -> None:
    state = network().state_dict()
    names = list(state)
    for name in names[:2]:
        del state[name]
    state["head.extra.weight"] = state["neck.bias"] = torch.zeros(3)
    state["fc.weight"] = torch.zeros(7, state["fc.weight"].shape[1])
    torch.save({"state_dict": state}, tmp_path / "other.pth")
    line = refused(*generate(tmp_path / "s", tmp_path / "other.pth", *SVD))
    for part in (f"2 missing: {', '.join(names[:2])}", "2 unexpected: head.extra.weight, neck.bias", "fc.weight [7, "):
        assert part in line


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
@pytest.mark.parametrize("how", ["noise", "truncated", "empty"])
def test_a_corrupt_checkpoint(refused: Refused, tmp_path: Path, suffix: str, how: str) -> None:
    path = tmp_path / f"weights{suffix}"
    state = network().state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    whole = path.read_bytes()
    path.write_bytes({"noise": bytes(range(256)) * 40, "truncated": whole[: len(whole) // 2], "empty": b""}[how])
    line = refused(*generate(tmp_path / "s", path, *SVD))
    assert str(path) in line
    assert "Traceback" not in line
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_student(refused: Refused, old: Path, name: str) -> None:
    data = (old / name).read_bytes()
    (old / name).write_bytes(data[: len(data) // 2])
    assert str(old) in refused("evaluate", old, "--data", "fashion_mnist_mini")


@pytest.mark.parametrize("report", [[1], {"transfer": 5}, {"transfer": {}}, {"layers": 5}, {"teacher": 3}], ids=str)
def test_a_damaged_report(refused: Refused, old: Path, report: object) -> None:
    (old / "report.json").write_text(json.dumps(report))
    assert "report.json that is no report" in refused("report", old)
    if report == {"transfer": 5}:
        assert "report.json that is no report" in refused("evaluate", old, "--data", "fashion_mnist_mini")


class Bomb:
    """Unpickling this creates a file: the harmless stand-in for any code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("raw", [True, False])
def test_a_pickle_that_would_run_code(refused: Refused, tmp_path: Path, raw: bool) -> None:
    path, crater = tmp_path / "weights.pth", tmp_path / "crater"
    if raw:
        path.write_bytes(pickle.dumps({"state_dict": Bomb(crater)}))
    else:
        torch.save({"state_dict": {"fc.weight": Bomb(crater)}}, path)
    line = refused(*generate(tmp_path / "s", path, *SVD))
    assert str(path) in line
    assert "run code" in line
    assert not crater.exists()
    pickle.loads(pickle.dumps(Bomb(crater)))  # noqa: S301 - our own bomb: it does go off elsewhere
    assert crater.exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(refused: Refused, tmp_path: Path, value: float) -> None:
    state = network().state_dict()
    state["fc.bias"][3] = value
    save_file(state, tmp_path / "bad.safetensors")
    line = refused(*generate(tmp_path / "s", tmp_path / "bad.safetensors", *SVD))
    assert "NaN or infinity in fc.bias" in line


def test_a_folder_called_like_a_model_is_not_in_its_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("test_resnet", "test_resnet.r160_in1k"):
        (tmp_path / name).mkdir()
        checks.model(name)
    with pytest.raises(ModelError, match="is there but is no student folder"):
        checks.model("./test_resnet")
