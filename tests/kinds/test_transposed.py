"""Transposed convolutions: costs where each factor runs, curvature of the matrix, and the whole way of a student."""

import copy
from pathlib import Path

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import hypercompress
from hypercompress import Budget, Student, benchmark, compress, from_pretrained
from hypercompress.benchmark import Settings, compare_layers
from hypercompress.curvature import measure
from hypercompress.curvature.fisher import fisher_probe
from hypercompress.factorize import plain_frame
from hypercompress.fidelity import compare
from hypercompress.generator import ANALYTIC, HypernetConfig, Hypernetwork
from hypercompress.generator.prior import input_moments
from hypercompress.inspection import inspect
from hypercompress.kinds import LowRankTransposed, fill, kind_of, low_rank_like
from hypercompress.meta import evaluate_case, prepare_case
from hypercompress.running.timing import Timing
from hypercompress.sketch import sketch
from hypercompress.specs import COUNTED, NormStatistics, Side, Sketch, Status, Unit
from hypercompress.student import build_student, low_rank_layers
from tests.lookup import row


class Upsampler(nn.Module):
    """Down and up again: with and without overlap, with BatchNorm and with a bias behind."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 24, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(24, 16, 4, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.last = nn.ConvTranspose2d(16, 12, 2, stride=2)
        self.head = nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.up(self.down(x).relu())).relu()
        logits: Tensor = self.head(self.last(x).relu().mean((2, 3)))
        return logits


def teacher() -> nn.Module:
    torch.manual_seed(0)
    model = Upsampler()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(2)
        model.norm.running_mean.uniform_(-0.3, 0.3)
        model.norm.running_var.uniform_(0.5, 1.5)
    return model.eval()


def images(count: int = 48) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(1)) + 0.2


def macs(model: nn.Module, x: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return int(counter.get_total_flops()) // 2 // len(x)


GEOMETRIES = [
    nn.ConvTranspose1d(6, 5, 3, stride=2, output_padding=1),
    nn.ConvTranspose2d(6, 4, (3, 2), stride=(2, 1), padding=1, dilation=(1, 2), bias=False),
    nn.ConvTranspose3d(3, 7, 2, stride=2),
]


@settings(max_examples=500)
@given(
    st.integers(1, 3),
    st.tuples(*[st.integers(1, 5)] * 2),
    st.tuples(*[st.integers(1, 3)] * 3),
    st.tuples(*[st.integers(1, 2)] * 2),
    st.booleans(),
    st.integers(0, 1000),
)
def test_full_rank_is_the_dense_layer(
    axes: int, channels: tuple[int, int], kernel: tuple[int, ...], steps: tuple[int, int], bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    stride, dilation = steps
    options = {"stride": stride, "dilation": dilation, "output_padding": stride - 1, "bias": bias}
    conv = getattr(nn, f"ConvTranspose{axes}d")(*channels, kernel[:axes], **options).double()
    kind, x = kind_of(conv), torch.randn(2, channels[0], *(3, 2, 2)[:axes], dtype=torch.float64)
    assert kind is not None
    weight = kind.matrix(conv)
    twin = low_rank_like(conv, min(weight.shape))
    side = Side.OUTPUT if weight.shape[0] <= weight.shape[1] else Side.INPUT
    fill(twin, plain_frame(weight, side).factors(weight, twin.rank), conv.bias)
    with torch.no_grad():
        expected = conv(x)
        atol = 1e-10 * float(expected.abs().max())
        torch.testing.assert_close(twin(x), expected, rtol=1e-10, atol=atol)
        torch.testing.assert_close(twin.to_dense()(x), expected, rtol=1e-10, atol=atol)


@pytest.mark.parametrize("conv", GEOMETRIES, ids=lambda conv: type(conv).__name__)
def test_costs_are_those_of_the_flop_counter(conv: nn.Module) -> None:
    x = torch.randn(2, conv.in_channels, *(5, 4, 3)[: conv.weight.ndim - 2])
    layer = inspect(nn.Sequential(conv), x).layers[0]
    assert (layer.status, layer.kind) == (Status.FACTORED, f"conv_transpose{conv.weight.ndim - 2}d")
    assert layer.dense_macs == macs(conv, x)
    assert not layer.projects
    for rank in (1, 2, 5):
        twin = low_rank_like(conv, rank)
        assert layer.cost(Unit.MACS, rank) == macs(twin, x)
        saved = layer.params - sum(p.numel() for p in twin.parameters())
        assert layer.dense_params - layer.cost(Unit.PARAMS, rank) == saved


def test_a_rank_saves_in_both_units_or_is_not_offered() -> None:
    layer = inspect(nn.Sequential(nn.ConvTranspose2d(24, 16, 2, stride=2)), torch.randn(1, 24, 5, 5)).layers[0]
    smaller = [r for r in range(1, 17) if all(layer.cost(u, r) < layer.dense_cost(u) for u in COUNTED)]
    by_params = [r for r in range(1, 17) if layer.cost(Unit.PARAMS, r) < layer.dense_params]
    assert smaller == list(range(1, layer.max_rank + 1))
    assert len(smaller) < len(by_params)


def rows(conv: nn.Module, x: Tensor) -> Tensor:
    """The columns of each output [positions, c * taps]: how it changes with the weight, by autograd."""
    assert isinstance(conv, nn.ConvTranspose2d)
    options = (None, conv.stride, conv.padding, conv.output_padding, 1, conv.dilation)
    kernel = torch.zeros(conv.in_channels, 1, *conv.kernel_size, dtype=x.dtype)
    found = torch.autograd.functional.jacobian(lambda w: F.conv_transpose2d(x, w, *options), kernel)
    return found.flatten(4).reshape(-1, kernel.numel())


@pytest.mark.parametrize("channels", [(2, 5), (2, 40)], ids=["output side", "input side"])
def test_curvature_is_that_of_the_matrix(channels: tuple[int, int]) -> None:
    conv = nn.ConvTranspose2d(*channels, (3, 2), stride=(2, 1), padding=(1, 0), output_padding=(1, 0))
    model = nn.Sequential(conv, nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels[1], 3))
    model, x = model.double(), torch.randn(3, 2, 4, 5, dtype=torch.float64) + 0.2
    spec = inspect(model, x)
    got = measure(model, spec, [x], seed=3)["0"]
    inputs, weight = rows(conv, x), conv.weight.detach().transpose(0, 1).flatten(1)
    outputs = conv(x).requires_grad_()
    torch.testing.assert_close(inputs @ weight.T + conv.bias, outputs.movedim(1, -1).flatten(0, -2))
    probe = fisher_probe(model[1:](outputs), torch.Generator().manual_seed(3))
    gradients = torch.autograd.grad(probe, outputs)[0].movedim(1, -1).flatten(0, -2)
    S, G = inputs.T @ inputs / len(inputs), gradients.T @ gradients / len(x)
    wanted = (weight @ S @ weight.T, G, weight @ weight.T, weight @ inputs.mean(0))
    if got.side is Side.INPUT:
        wanted = (S, weight.T @ G @ weight, weight.T @ weight, inputs.mean(0))
    assert got.side is (Side.OUTPUT if channels[1] == 5 else Side.INPUT)
    for ours, theirs in zip((got.signal, got.fisher, got.gram, got.mean), wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)  # log_softmax is computed in float32


def test_guessed_moments_know_of_the_gaps() -> None:
    """Without overlap and padding they are exact: a column reads an input at one of four positions."""
    torch.manual_seed(0)
    conv, norm = nn.ConvTranspose2d(4, 9, 2, stride=2).double(), nn.BatchNorm2d(4).double()
    x = torch.randn(6, 4, 5, 5, dtype=torch.float64)
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), correction=0, keepdim=True)
    shift, scale = torch.rand(2, 4, dtype=torch.float64) + 5  # so far above zero that a ReLU would change nothing
    x = x * scale[:, None, None] * 0.1 + shift[:, None, None]
    layer = inspect(nn.Sequential(norm, conv), x).layers[1]
    statistics = NormStatistics(0.1 * scale, shift, norm.running_mean, norm.running_var, 0.0, moments=True)
    kind = kind_of(conv)
    assert kind is not None
    mean, variance = input_moments(layer, Sketch(kind.matrix(conv), None, None, None, statistics))
    columns = kind.input_rows(conv, x)
    torch.testing.assert_close(mean, columns.mean(0))
    torch.testing.assert_close(variance, columns.var(0, correction=0))


@pytest.mark.parametrize("generator", ["kfac", "whitened", "svd", "hypernet"])
@pytest.mark.parametrize("budget", [Budget(params=0.5), Budget(macs=0.6)], ids=["params", "macs"])
def test_a_student_goes_all_the_way(generator: str, budget: Budget, tmp_path: Path) -> None:
    model, x = teacher(), images()
    before = copy.deepcopy(model.state_dict())
    student = compress(model, budget, x.split(12), generator)
    assert {"up", "last"} & set(student.ranks)
    assert sum(p.numel() for p in student.parameters()) == student.report["student"]["params"]
    assert macs(student, x[:2]) == student.report["student"]["macs"]
    assert student.report["student"][str(budget.unit)] <= budget.share * student.report["teacher"][str(budget.unit)]
    student(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in student.parameters())
    student.save_pretrained(tmp_path / "student")
    loaded = from_pretrained(tmp_path / "student", skeleton=Upsampler())
    assert torch.equal(loaded(x), student(x))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    dense = student.to_dense()
    assert {type(m) for m in dense.modules()} == {type(m) for m in model.modules()}
    torch.testing.assert_close(dense(x), student(x), rtol=1e-4, atol=1e-5)


def student_of(share: float = 0.45) -> Student:
    return compress(teacher(), Budget(params=share), images().split(12), "kfac", refit=False, norms=False)


def test_without_data() -> None:
    for generator in ("svd", "prior", "hypernet"):
        student = compress(teacher(), Budget(params=0.5), generator=generator, example=images(2))
        assert {"up", "last"} & set(student.ranks)
        assert student(images(2)).isfinite().all()


def test_a_student_is_compressed_again_and_multiplied_out() -> None:
    student, x = student_of(), images(8)
    again = compress(student.model, Budget(params=0.9), generator="svd", example=x)
    nested = [name for name in again.ranks if name.startswith(("up.", "last."))]
    assert nested
    torch.testing.assert_close(again.to_dense()(x), again(x), rtol=1e-4, atol=1e-5)


def test_layers_that_cannot_be_a_twin_stay_and_say_why() -> None:
    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grouped = nn.ConvTranspose2d(8, 8, 3, groups=2)
            self.depthwise = nn.ConvTranspose2d(8, 8, 3, groups=8)
            self.sized = nn.ConvTranspose2d(8, 16, 3, stride=2)
            self.named = nn.ConvTranspose2d(16, 16, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.sized(self.depthwise(self.grouped(x)), output_size=(20, 20))
            return self.named(input=x).mean((2, 3))

    model, x = Sized(), torch.randn(2, 8, 5, 5)
    spec = inspect(model, x)
    found = {layer.name: (layer.status, layer.reason) for layer in spec.layers}
    assert found == {
        "grouped": (Status.KEPT, "grouped convolution (groups=2), and transposed"),
        "depthwise": (Status.KEPT, "depthwise convolution (groups=8), and transposed"),
        "sized": (
            Status.UNSUPPORTED,
            "it is called with more than one argument (an output size?); its twin takes one",
        ),
        "named": (Status.FACTORED, ""),
    }
    assert spec.macs == sum(layer.dense_macs for layer in spec.layers) == macs(model, x)
    assert compress(model, Budget(params=0.8), generator="svd", example=x)(x).shape == (2, 16)


@pytest.mark.parametrize("kind", ["onnx", "torch-export"])
def test_export(kind: str, tmp_path: Path) -> None:
    student = student_of()
    assert any(isinstance(layer, LowRankTransposed) for layer in low_rank_layers(student.model).values())
    assert hypercompress.export(student, tmp_path / "student", kind, input_size=(3, 8, 8)).max_difference < 1e-5


def test_layers_are_compared_by_what_they_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "interleaved", lambda *_, **__: [Timing((1.0,) * 5)] * 2)
    student, x = student_of(), images(2)
    spec = inspect(student.to_dense(), x)
    for speed in compare_layers(student, x, Settings()):
        layer = row(spec, speed.name)
        ours = layer.cost(Unit.MACS, speed.rank, student.input_ranks.get(speed.name))
        assert speed.speed.macs_ratio == layer.dense_macs / ours


def test_meta_training_calls_the_teacher_with_the_students_weights() -> None:
    torch.manual_seed(0)
    batches, budget = list(images().split(12)), Budget(params=0.4)
    case, network = prepare_case("upsampler", teacher(), batches), Hypernetwork(HypernetConfig(16, 1, 2))
    spec, sketches = inspect(case.teacher, batches[0][:2]), sketch(case.teacher, case.spec, batches)
    student = build_student(case.teacher, spec, ANALYTIC["kfac"].generate(spec, sketches, budget))
    assert {"up", "last"} & set(student.ranks)
    got = evaluate_case(network, case, budget, batches)
    assert got == pytest.approx(compare(case.teacher, student, batches).kl, rel=1e-3)
