"""Files in int8: calibrated where they must be, measured on other images, and never kept where they are no numbers."""

from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

import hypercompress
from hypercompress import Budget
from hypercompress.errors import DataError, ExportError
from hypercompress.export import checked, export, int8
from hypercompress.running.calibration import split_batches
from tests.exported import MLP, mlp_student, run_elsewhere


class Convolutions(nn.Module):
    """A small convolutional network."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32)
        self.second, self.fc = nn.Conv2d(32, 64, 3, 2, 1), nn.Linear(64, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.norm(self.first(x)).relu()).relu()
        output: Tensor = self.fc(x.mean((2, 3)))
        return output


def agreement(file: Path, model: nn.Module, images: Tensor, batch: int = 32) -> float:
    """By batches as `export` measures it: dynamic ranges are those of a batch."""
    answers = torch.cat([run_elsewhere(file, "onnx", some) for some in images.split(batch)])
    with torch.no_grad():
        return float((answers.argmax(1) == model(images).argmax(1)).float().mean())


def test_int8_of_products_is_dynamic_and_needs_no_images(tmp_path: Path) -> None:
    student = mlp_student(0.9)
    exported = export(student, tmp_path / "file", input_size=(32,), int8=True, seed=5)
    result = exported.int8
    assert result is not None
    assert (result.method, result.measured_on, result.images) == ("dynamic", "noise", int8.NOISE)
    assert exported.bytes == (tmp_path / "file").stat().st_size < 0.35 * result.float_bytes
    noise = torch.randn(int8.NOISE, 32, generator=torch.Generator().manual_seed(5))
    assert result.agreement == pytest.approx(agreement(tmp_path / "file", student, noise))
    assert result.agreement > 0.8
    assert 0 <= result.kl < 0.01
    assert exported.as_json()["int8"] == vars(result)
    kinds = {node.op_type for node in onnx.load(tmp_path / "file").graph.node}
    assert "MatMulInteger" in kinds
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_int8_of_convolutions_is_calibrated_on_some_images_and_measured_on_others(tmp_path: Path) -> None:
    example = torch.randn(2, 3, 16, 16)
    student = hypercompress.compress(Convolutions(), Budget(params=0.6), generator="svd", example=example)
    batches = [(torch.randn(16, 3, 16, 16), torch.zeros(16, dtype=torch.long)) for _ in range(4)]
    exported = export(student, tmp_path / "file", input_size=(3, 16, 16), int8=True, data=batches)
    result = exported.int8
    assert result is not None
    assert (result.method, result.measured_on) == ("static", "data")
    assert exported.bytes < 0.5 * result.float_bytes
    split = split_batches([images for images, _ in batches], torch.device("cpu"))
    held_out = torch.cat([*split.select, *split.confirm])
    assert result.images == len(held_out)
    assert result.agreement == pytest.approx(agreement(tmp_path / "file", student, held_out))
    assert 0 <= result.kl < 0.01
    scales = {node.op_type for node in onnx.load(tmp_path / "file").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= scales


def test_images_are_cast_to_the_models_type(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images = Convolutions().eval(), torch.randn(24, 3, 16, 16).double()
    options = {"input_size": (3, 16, 16), "int8": True}
    results = [
        export(model, tmp_path / str(x.dtype), data=x.split(8), **options).int8 for x in (images, images.float())
    ]
    assert results[0] == results[1]


def test_int8_of_convolutions_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"received int8 without images for a model with \d+% of its weights in conv"):
        export(Convolutions(), tmp_path / "file", input_size=(3, 16, 16), int8=True)
    with pytest.raises(DataError, match="received a calibration batch of dict"):
        export(MLP(), tmp_path / "file", input_size=(32,), int8=True, data=[{"x": torch.randn(8, 32)}])
    assert list(tmp_path.iterdir()) == []


def test_int8_that_is_no_number_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8.OnnxModel, "forward", lambda self, x: torch.full((len(x), 7), float("nan")))
    with pytest.raises(ExportError, match="differ from the model's by nan"):
        export(MLP(), tmp_path / "file", input_size=(32,), int8=True)
    with pytest.raises(ExportError, match="received an int8 file with NaN"):
        checked.require_finite(nn.LogSoftmax(0), [torch.full((2,), float("inf"))])
