"""What no file could give is refused, and the reason is the right one: the model's, the file's or the caller's."""

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

import hypercompress
from hypercompress.errors import ExportError, ModelError, NonFiniteError
from hypercompress.export import FORMATS, checked, export, program
from tests.exported import student_of


class Branching(nn.Module):
    """What it computes depends on how many inputs there are."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.fc, self.most = nn.Linear(8, 4), most

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x)
        return y - y.mean(0) if x.shape[0] > self.most else y


class InPieces(nn.Module):
    """The same for any number of inputs, written so that a graph is of at most eight."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.fc(x) if x.shape[0] <= 8 else torch.cat([self.fc(some) for some in x.split(8)])
        return output


class Masked(nn.Module):
    """Adds ``value`` to one of its outputs."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.fc, self.value = nn.Linear(8, 4), value

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.fc(x) + torch.tensor([0, 0, 0, self.value])
        return output


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize(("model", "most"), [(Branching(16), 16), (Branching(5000), 5000), (InPieces(), 8)])
def test_a_graph_for_few_inputs_only_is_refused(tmp_path: Path, kind: str, model: nn.Module, most: int) -> None:
    with pytest.raises(ExportError, match=rf"for more than {most} inputs in a batch; expected the same for any number"):
        export(model, tmp_path / "file", kind, input_size=(8,))
    assert list(tmp_path.iterdir()) == []


def test_a_bound_as_kernels_set_is_taken() -> None:
    """Those of an accelerator count the numbers in a batch with 32 bits."""

    def bounded(numbers: int) -> ExportedProgram:
        with torch.no_grad():
            return program.trace(Branching(numbers // 8).eval(), torch.randn(2, 8))

    assert bounded(2**31).range_constraints
    with pytest.raises(ExportError, match="inputs in a batch"):
        bounded(program.INDEXED // 2)


@pytest.mark.parametrize("kind", FORMATS)
def test_infinity_that_is_the_models_own_is_no_difference(tmp_path: Path, kind: str) -> None:
    assert export(Masked(float("-inf")), tmp_path / "file", kind, input_size=(8,)).max_difference < 1e-5


def test_other_infinities_are_a_difference() -> None:
    inputs = [torch.tensor([[1.0, float("inf")]])]
    assert checked.largest_difference(nn.Identity(), inputs, inputs) == 0
    for wanted in (torch.tensor([[1.0, 2.0]]), -inputs[0]):
        assert checked.largest_difference(nn.Identity(), inputs, [wanted]) == float("inf")
    assert checked.largest_difference(nn.Identity(), inputs, [inputs[0] + torch.tensor([4.0, 0.0])]) == 4 / 5


@pytest.mark.parametrize(
    ("value", "words", "text"),
    [
        (float("nan"), {}, "received NaN in the model's own outputs"),
        (float("nan"), {"int8": True}, "received NaN or infinity in the model's own outputs"),
        (float("-inf"), {"int8": True}, "received NaN or infinity in the model's own outputs"),
    ],
)
def test_numbers_that_the_model_lacks_are_not_the_files_fault(
    tmp_path: Path, value: float, words: dict[str, Any], text: str
) -> None:
    with pytest.raises(NonFiniteError, match=text):
        export(Masked(value), tmp_path / "file", input_size=(8,), **words)
    assert list(tmp_path.iterdir()) == []


def test_a_model_of_two_inputs(tmp_path: Path) -> None:
    class Two(nn.Linear):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return super().forward(x + y)

    with pytest.raises(ModelError, match=r"missing 1 required .* 'y'.*; pass input_size, or wrap a model of several"):
        hypercompress.export(Two(8, 8), tmp_path / "file", input_size=(8,))


@pytest.mark.parametrize("size", [8, (), (0,), (-1, 8), (2.5,), "8", ("8",)])
def test_an_input_size_that_is_none(tmp_path: Path, size: Any) -> None:
    with pytest.raises(ModelError, match=r"received the input size .*expected positive whole numbers"):
        inspect.unwrap(export)(nn.Linear(8, 8), tmp_path / "file", input_size=size)  # not by the tests' type checks


def test_an_input_size_in_numbers_of_numpy(tmp_path: Path) -> None:
    unchecked = inspect.unwrap(export)
    unchecked(nn.Linear(8, 8), tmp_path / "file", "torch-export", input_size=[np.int64(8)])


@pytest.mark.parametrize("part", ["all", "last"])
def test_bfloat16_is_for_torchs_own_format(tmp_path: Path, part: str) -> None:
    class Cast(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.to(self.weight.dtype))

    model = nn.Sequential(Cast(8, 8), Cast(8, 4))
    (model if part == "all" else model[1]).bfloat16()
    with pytest.raises(
        ExportError, match=r"received a model in bfloat16; expected one in float32.*pass model\.float\("
    ):
        export(model, tmp_path / "file.onnx", input_size=(8,))
    export(model, tmp_path / "file.pt2", input_size=(8,))
    export(model.float(), tmp_path / "file.onnx", input_size=(8,))


def test_half_precision_differs_by_its_own_rounding(tmp_path: Path) -> None:
    """Between 1e-4, which float32 is held to, and 1e-2."""
    student = student_of("test_vit").half()
    found = export(student, tmp_path / "file.onnx")
    assert 1e-4 < found.max_difference < 1e-2
    assert found.bytes < 1.1 * found.student_bytes + 2**20
    assert checked.tolerance_of(student, "onnx") == 1e-2
    assert checked.tolerance_of(student, "torch-export") == checked.tolerance_of(student.float(), "onnx") == 1e-4
    with pytest.raises(ExportError, match=r"differ from the model's by 2\.0e-02 .* at most 0\.01, no more than"):
        checked.require_close(0.02, 1e-2)


def test_lack_of_memory_is_no_wrong_size(tmp_path: Path) -> None:
    class Large(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError

    with pytest.raises(torch.OutOfMemoryError):
        export(Large(8, 8), tmp_path / "file", input_size=(8,))


def test_a_file_that_does_not_run_is_not_the_models_fault() -> None:
    class Refusing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("guard failed")

    x = torch.ones(3, 2)
    with pytest.raises(ExportError, match=r"a file that does not run \(guard failed\); expected one that takes 3 inp"):
        checked.largest_difference(Refusing(), [x], [x])
