"""Models that look at a factored layer's weight, or compute with it: transformed, counted, exported, compiled."""

import copy
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import hypercompress
from hypercompress import Budget, compress
from hypercompress.inspection import inspect
from hypercompress.kinds import low_rank_like
from hypercompress.specs import Status


class Looking(nn.Module):
    """As timm's Gemma 4: the input is cast to what the layer computes in."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x.to(self.first.weight.dtype)).relu()
        logits: Tensor = self.second(x.to(self.second.weight.device)) / self.second.weight.shape[1]
        return logits


class Computing(nn.Module):
    """Reads a factored layer's weight for its numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = low_rank_like(nn.Linear(8, 6, dtype=torch.float64), 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.layer.weight, self.layer.bias)


def test_transforms_of_functions() -> None:
    layer, x = Computing(), torch.randn(3, 8, dtype=torch.float64)
    parameters = {name: parameter.detach() for name, parameter in layer.named_parameters()}

    def total(values: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(layer, values, x).square().sum()

    layer(x).square().sum().backward()
    for name, gradient in torch.func.grad(total)(parameters).items():
        torch.testing.assert_close(gradient, layer.get_parameter(name).grad)
    stacked = {name: torch.stack([value, 2 * value]) for name, value in parameters.items()}
    twice = total({name: 2 * value for name, value in parameters.items()})
    torch.testing.assert_close(torch.vmap(total)(stacked), torch.stack([total(parameters), twice]))


def macs(model: nn.Module, x: Tensor) -> float:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return counter.get_total_flops() / 2 / len(x)


@pytest.fixture
def student() -> hypercompress.Student:
    return compress(Looking().eval(), Budget(params=0.8), generator="svd", example=torch.randn(4, 12))


def test_what_is_computed_is_counted(student: hypercompress.Student) -> None:
    assert student.ranks
    assert macs(student, torch.randn(4, 12)) == student.report["student"]["macs"]
    assert macs(Computing(), torch.randn(4, 8, dtype=torch.float64)) == 8 * 6 + 6 * 2 * 8 / 4


def test_a_student_may_be_compressed_again(student: hypercompress.Student) -> None:
    spec = inspect(student.model, torch.randn(4, 12))
    assert {layer.status for layer in spec.layers} <= {Status.FACTORED, Status.KEPT}
    assert {layer.name for layer in spec.candidates}


# The tests' own check of shapes keeps a stack while dynamo traces through it.
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects:UserWarning")
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("make", [Looking, Computing])
def test_torch_export(student: hypercompress.Student, make: type[nn.Module], strict: bool) -> None:
    model = student.model if make is Looking else Computing()
    x = torch.randn(4, 12) if make is Looking else torch.randn(4, 8, dtype=torch.float64)
    with torch.no_grad():
        program = torch.export.export(model, (x,), strict=strict, dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.testing.assert_close(program.module()(x[:3]), model(x[:3]))
    if strict:  # dynamo multiplies out, and export keeps what nothing uses
        program.graph.eliminate_dead_code()
    assert [node.target for node in program.graph.nodes].count(torch.ops.aten.matmul.default) == (make is Computing)


@pytest.mark.parametrize("kind", ["onnx", "torch-export"])
def test_an_exported_file_multiplies_nothing_out(student: hypercompress.Student, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "student"
    hypercompress.export(student, file, kind, input_size=(12,))
    if kind == "onnx":
        nodes = [node.op_type for node in onnx.load(file).graph.node]
        assert sum(node in {"Gemm", "MatMul"} for node in nodes) == 2 + len(student.ranks)
    else:
        targets = [node.target for node in torch.export.load(file).graph.nodes]
        assert torch.ops.aten.matmul.default not in targets
        assert targets.count(torch.ops.aten.linear.default) == 2 + len(student.ranks)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("make", [Looking, Computing])
def test_torch_compile(student: hypercompress.Student, make: type[nn.Module], backend: str) -> None:
    torch._dynamo.reset()
    model = student.model if make is Looking else Computing()
    x = torch.randn(4, 12) if make is Looking else torch.randn(4, 8, dtype=torch.float64)
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    gradients = []
    for call in (compiled, model):
        model.zero_grad()
        call(x).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), model(x))


def test_torchs_fused_transformer_layer_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would run on the products. (Attention that `compress` unpacked keeps it away too; this is still packed.)"""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    teacher, x = nn.TransformerEncoder(layer, 2).eval(), torch.randn(3, 7, 32)
    student = copy.deepcopy(teacher)
    for block in student.layers:
        block.linear1, block.linear2 = low_rank_like(block.linear1, 8), low_rank_like(block.linear2, 8)
    fused, calls = torch._transformer_encoder_layer_fwd, []
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *args: calls.append(1) or fused(*args))
    with torch.no_grad():
        teacher(x)
        assert len(calls) == 2
        got = student(x)
        assert len(calls) == 2
        for block in student.layers:
            block.linear1, block.linear2 = block.linear1.to_dense(), block.linear2.to_dense()
        dense = student(x)
    assert len(calls) == 4
    torch.testing.assert_close(got, dense, rtol=0, atol=1e-5)
