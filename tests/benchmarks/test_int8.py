"""The files in eight bits beside the float file."""

import csv
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import int8
from benchmarks.shared.common import read_set
from hypercompress.compress import compress
from hypercompress.errors import ExportError
from hypercompress.export.int8 import quantize
from hypercompress.export.onnx_file import PACKAGES, OnnxModel
from hypercompress.models import load_model
from hypercompress.running.calibration import split_batches
from hypercompress.specs import Budget

PACKAGED = files("hypercompress") / "pretrained" / "fashion_mnist_teacher"
DATA = "fashion_mnist_mini"


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in PACKAGES:
        pytest.importorskip(package)
    monkeypatch.setattr(int8, "STUDENT_IMAGES", 128)
    monkeypatch.setattr(int8, "TEST_IMAGES", 100)
    monkeypatch.setattr(int8, "BATCH", 32)


@pytest.fixture
def run(tmp_path: Path) -> Callable[[], list[dict[str, str]]]:
    words = ["--teacher", str(PACKAGED), "--data", DATA, "--images", "64", "--seconds", "0.001", "--out", str(tmp_path)]

    def rows() -> list[dict[str, str]]:
        int8.main(words)
        with (tmp_path / "int8.csv").open() as file:
            return list(csv.DictReader(file))

    return rows


def test_a_row_for_each_way(run: Callable[[], list[dict[str, str]]], capsys: pytest.CaptureFixture[str]) -> None:
    rows = run()
    assert [row["way"] for row in rows] == list(int8.WAYS)
    exact, static, dynamic = rows
    assert float(exact["agreement"]) == float(exact["bytes_ratio"]) == float(exact["speedup_1"]) == 1
    assert abs(float(exact["kl"])) < 1e-6
    assert [row["chosen"] for row in rows] == ["False", "True", "False"]  # it is mostly convolutions
    assert float(static["bytes_ratio"]) < 0.8 < float(dynamic["bytes_ratio"])
    assert float(static["kl"]) > float(dynamic["kl"]) > -1e-6
    assert float(static["speedup_16"]) == pytest.approx(float(exact["ms_16"]) / float(static["ms_16"]), rel=1e-4)
    out = capsys.readouterr().out
    assert "| **static** |" in out
    assert "| dynamic |" in out
    assert run() == rows  # nothing is made twice


def test_a_way_that_is_refused_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise ExportError("received an operation")

    monkeypatch.setattr(int8, "export", lambda student, file: None)
    monkeypatch.setattr(int8, "write_static", lambda source, file, batches: None)
    monkeypatch.setattr(int8, "write_dynamic", refuse)
    assert list(int8.written(nn.Identity(), [], tmp_path)) == ["float", "static"]  # type: ignore[arg-type]
    assert "dynamic: received an operation" in capsys.readouterr().out


def test_the_static_file_is_the_exporters(tmp_path: Path) -> None:
    """From the images that it calibrates with."""
    teacher, _ = load_model(str(PACKAGED))
    batches = read_set(teacher, DATA, train=True, limit=128).images.split(32)
    student = compress(teacher, Budget(params=0.5), generator="svd")
    ours = int8.written(student, split_batches(batches, torch.device("cpu")).statistics, tmp_path)
    exported = tmp_path / "exported.onnx"
    assert quantize(student, ours["float"], exported, batches, batches[0]).method == "static"
    torch.testing.assert_close(OnnxModel(ours["static"])(batches[0]), OnnxModel(exported)(batches[0]))
