"""Files in int8: calibrated where they must be, measured on other images, and never kept where they are no numbers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import hypercompress
from hypercompress import Budget
from hypercompress.errors import DataError, ExportError, ModelError
from hypercompress.export import checked, export, int8
from hypercompress.running.calibration import split_batches
from tests.exported import MLP, mlp_student, run_elsewhere, student_of


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


class Upwards(nn.Module):
    """Transposed convolutions alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.ConvTranspose2d(3, 64, 4, 2), nn.ConvTranspose2d(64, 64, 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.second(self.first(x).relu())
        return output


class Recurrent(nn.Module):
    """Weights that onnxruntime's quantizer does not reach."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(16, 128, batch_first=True), nn.Linear(128, 4)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.lstm(x)[0][:, -1])
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


def test_int8_of_transposed_convolutions(tmp_path: Path) -> None:
    options = {"input_size": (3, 8, 8), "int8": True}
    exported = export(Upwards(), tmp_path / "file", data=list(torch.randn(64, 3, 8, 8).split(16)), **options)
    assert exported.int8 is not None
    assert exported.int8.method == "static"
    assert exported.bytes < 0.35 * exported.int8.float_bytes
    with pytest.raises(ExportError, match="received int8 without images for a model with 100% of its weights in conv"):
        export(Upwards(), tmp_path / "other", **options)


@pytest.mark.filterwarnings("ignore:The tensor attributes self.lstm")  # torch's, of every LSTM that it traces
def test_int8_that_saves_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ExportError, match=r"that eight bits would save nothing of \(.* in float\); expected weights in"
    ):
        export(Recurrent(), tmp_path / "file", input_size=(10, 16), int8=True)
    assert list(tmp_path.iterdir()) == []
    int8.require_smaller(94, 100)
    with pytest.raises(ExportError, match=r"would save nothing .* and more of them than the scales and operations"):
        int8.require_smaller(96, 100)  # as of a densely connected model that is small


@pytest.mark.parametrize("name", ["test_efficientnet_gn", "test_nfnet"])
def test_operations_that_the_quantizer_breaks_stay_in_float(tmp_path: Path, name: str) -> None:
    student = student_of(name)
    size = student.pretrained_cfg["input_size"]
    exported = export(student, tmp_path / "file", int8=True, data=list(torch.randn(16, *size).split(4)))
    assert exported.int8 is not None
    assert exported.int8.method == "static"
    assert exported.int8.kl < 0.02


class Indexed(TensorDataset):
    """An indexed set that the tests' type checks take for an iterable, as Python does."""

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        return (self[i] for i in range(len(self)))


IMAGES, LABELS = torch.randn(24, 3, 16, 16), torch.zeros(24, dtype=torch.long)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (IMAGES, r"received a Tensor as calibration data"),
        (Indexed(IMAGES, LABELS), r"received a Indexed as calibration data"),
        ((IMAGES, LABELS), r"images and labels of a single batch"),
        ([IMAGES.byte()], r"batch of torch\.uint8 \[24, 3, 16, 16\]; expected real numbers of \['b', 3, 16, 16\]"),
        ([IMAGES[..., :8]], r"batch of torch\.float32 \[24, 3, 16, 8\]; expected"),
        (list(IMAGES), r"batch of torch\.float32 \[3, 16, 16\]; expected"),
        ([IMAGES[:0]], "without a single batch"),
    ],
    ids=["tensor", "set", "pair", "whole", "size", "single", "empty"],
)
@pytest.mark.parametrize("products", [False, True])
def test_images_that_are_none(tmp_path: Path, data: Any, text: str, products: bool) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(768, 4)) if products else Convolutions()
    with pytest.raises(DataError, match=text):
        export(model, tmp_path / "file", input_size=(3, 16, 16), int8=True, data=data)
    assert list(tmp_path.iterdir()) == []


def test_a_loader_may_refill_its_memory(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, buffer = Convolutions().eval(), torch.empty(8, 3, 16, 16)

    def refilled() -> Iterator[Tensor]:
        for images in IMAGES.split(8):
            yield buffer.copy_(images)

    options = {"input_size": (3, 16, 16), "int8": True}
    results = [
        export(model, tmp_path / str(i), data=data, **options) for i, data in enumerate((IMAGES.split(8), refilled()))
    ]
    assert results[0].int8 == results[1].int8


def test_images_may_ask_for_gradients(tmp_path: Path) -> None:
    data = [images.requires_grad_() for images in IMAGES.clone().split(8)]
    export(Convolutions(), tmp_path / "file", input_size=(3, 16, 16), int8=True, data=data)


def test_images_that_the_model_refuses(tmp_path: Path) -> None:
    class Refusing(MLP):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("too large")

    export(MLP(), tmp_path / "float", input_size=(32,))
    with pytest.raises(ModelError, match=r"received a batch of torch\.float32 \[8, 32\] that the model does not take"):
        int8.quantize(Refusing(), tmp_path / "float", tmp_path / "file", [torch.randn(8, 32)], torch.randn(2, 32))
