"""Layers that hold one weight: one candidate, one pair of factors, and every other sharing stays with its reason."""

import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.layers.std_conv import ScaledStdConv2d, StdConv2d
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import hypercompress
from hypercompress import Budget, Student, compress, from_pretrained, latency
from hypercompress.curvature import measure
from hypercompress.factorize import plain_frame
from hypercompress.generator import ANALYTIC, HypernetConfig, Hypernetwork
from hypercompress.generator.restoration import absorbs
from hypercompress.inspection import inspect
from hypercompress.kinds import matrix
from hypercompress.meta import evaluate_case, prepare_case
from hypercompress.projection import SplitProjection
from hypercompress.reconstruction import reconstruct
from hypercompress.sketch import sketch
from hypercompress.specs import Curvature, Factors, Generation, RankPlan, Side, Status, Unit
from hypercompress.student import build_student, low_rank_layers
from hypercompress.unpacking import unpack
from tests.lookup import row


class Decoders(nn.Module):
    """An autoencoder with two decoders on one weight, each with a bias of its own; the later one is called first."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(30, 16)
        self.late, self.early = nn.Linear(16, 30), nn.Linear(16, 30)
        self.late.weight = self.early.weight
        self.head = nn.Linear(60, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encode(x).tanh()
        logits: Tensor = self.head(torch.cat([self.early(h), self.late(h.flip(-1).relu())], -1).tanh())
        return logits


class Dilated(nn.Module):
    """One kernel at three dilations (TridentNet), and a Linear on top."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.branches = nn.ModuleList(nn.Conv2d(12, 20, 3, padding=d, dilation=d, stride=d) for d in (1, 2, 3))
        for branch in self.branches[1:]:
            branch.weight = self.branches[0].weight
        self.head = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        logits: Tensor = self.head(sum(branch(x).relu().mean((2, 3)) for branch in self.branches))
        return logits


Make = Callable[[], nn.Module]
NETWORKS: dict[type[nn.Module], tuple[tuple[int, ...], str, tuple[str, ...]]] = {
    Decoders: ((30,), "early", ("late",)),
    Dilated: ((3, 9, 9), "branches.0", ("branches.1", "branches.2")),
}


def made(make: Make) -> nn.Module:
    torch.manual_seed(0)
    return make().double().eval()


def inputs(make: Make, count: int = 48) -> Tensor:
    size = NETWORKS[make][0]  # type: ignore[index]
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.3


def untied(model: nn.Module, paths: tuple[str, ...]) -> nn.Module:
    """A copy in which these layers have weights of their own, with equal values."""
    model = copy.deepcopy(model)
    for path in paths:
        for part in model.get_submodule(path).modules():
            if "weight" in part._parameters:
                part.weight = nn.Parameter(part.weight.detach().clone())
    return model


def macs(model: nn.Module, x: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return int(counter.get_total_flops()) // 2 // len(x)


def student_of(make: Make, share: float = 0.6, generator: str = "kfac", **options: Any) -> tuple[nn.Module, Student]:
    model = made(make)
    return model, compress(model, Budget(params=share), inputs(make).split(12), generator, norms=False, **options)


both = pytest.mark.parametrize("make", NETWORKS)


@both
def test_they_are_one_layer_with_all_positions(make: type[nn.Module]) -> None:
    model, x = made(make), inputs(make, 2)
    _, first, others = NETWORKS[make]
    spec, apart = inspect(model, x), inspect(untied(model, others), x)
    layer, alone = row(spec, first), [row(apart, path) for path in (first, *others)]
    assert (layer.status, layer.shared, layer.paths) == (Status.FACTORED, others, (first, *others))
    assert layer.positions == sum(one.positions for one in alone)
    assert layer.input_positions == sum(one.input_positions for one in alone)
    assert layer.calls == len(alone)
    for path in others:
        other = row(spec, path)
        assert other.status is Status.TIED
        assert other.reason == f"shares its weight with {first}, and whatever becomes of it"
        assert (other.positions, other.calls, other.dense_macs) == (0, 0, 0)
        assert other.params == len(model.get_submodule(path).bias)
    assert [one.name for one in spec.candidates if one.shared] == [first]
    assert sum(one.params for one in spec.layers) == spec.params == sum(p.numel() for p in model.parameters())
    assert sum(one.dense_macs for one in spec.layers) == spec.macs == macs(model, x)


@both
def test_curvature_sums_over_all_of_them(make: type[nn.Module]) -> None:
    model, x = made(make), inputs(make)
    _, first, others = NETWORKS[make]
    spec, separate = inspect(model, x[:2]), untied(model, others)
    apart = inspect(separate, x[:2])
    ours, theirs = (measure(m, s, x.split(12), seed=2) for m, s in ((model, spec), (separate, apart)))
    parts = [(theirs[path], row(apart, path).positions) for path in (first, *others)]
    whole = sum(weight for _, weight in parts)

    def mean(field: Callable[[Curvature], Tensor]) -> Tensor:
        return torch.stack([field(part) * weight / whole for part, weight in parts]).sum(0)

    got = ours[first]
    torch.testing.assert_close(got.signal, mean(lambda c: c.signal))
    torch.testing.assert_close(got.mean, mean(lambda c: c.mean))
    torch.testing.assert_close(got.fisher, torch.stack([part.fisher for part, _ in parts]).sum(0))
    torch.testing.assert_close(got.gram, parts[0][0].gram)
    if got.inputs is not None:
        weights = [row(apart, path).input_positions for path in (first, *others)]
        signals = [part.inputs.signal * w / sum(weights) for (part, _), w in zip(parts, weights, strict=True)]
        torch.testing.assert_close(got.inputs.signal, torch.stack(signals).sum(0))
        torch.testing.assert_close(got.columns, mean(lambda c: c.columns))


@both
def test_full_rank_is_the_teacher(make: type[nn.Module]) -> None:
    model, x = made(make), inputs(make, 8)
    spec = inspect(model, x)
    layer = row(spec, NETWORKS[make][1])
    weight = matrix(model.get_submodule(layer.name)).detach()
    factors = plain_frame(weight, layer.side).factors(weight, layer.full_rank)
    plan = RankPlan({layer.name: layer.full_rank}, Unit.PARAMS, 0, 0.0, None)
    student = build_student(model, spec, Generation(Factors({layer.name: factors}, {}), plan, "", 0.0))
    assert set(student.ranks) == set(layer.paths)
    torch.testing.assert_close(student(x), model(x), rtol=0, atol=1e-10)


@both
@pytest.mark.parametrize("unit", [Unit.PARAMS, Unit.MACS])
@pytest.mark.parametrize("generator", ["kfac", "svd", "hypernet"])
def test_a_student_holds_one_pair_of_factors(make: type[nn.Module], unit: Unit, generator: str, tmp_path: Path) -> None:
    teacher, x = made(make), inputs(make)
    before, (_, first, others) = copy.deepcopy(teacher.state_dict()), NETWORKS[make]
    student = compress(teacher, Budget(**{str(unit): 0.5}), x.split(12), generator)
    assert {first, *others} <= set(student.ranks)
    layers = low_rank_layers(student.model)
    for path in others:
        ours, theirs = (dict(layers[p].named_parameters()) for p in (path, first))
        assert all((ours[name] is theirs[name]) is (ours[name].ndim > 1) for name in ours)
        assert torch.equal(layers[path].bias, teacher.get_submodule(path).bias)
    count, report = sum(p.numel() for p in student.parameters()), student.report
    assert count == report["student"]["params"]
    assert macs(student, x[:2]) == report["student"]["macs"]
    assert report["student"][str(unit)] <= 0.5 * report["teacher"][str(unit)]
    statuses = {line["name"]: line["status"] for line in report["layers"]}
    assert statuses[first] == "factored"
    assert {statuses[path] for path in others} == {"tied"}
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    student.save_pretrained(tmp_path / "s")
    stored = load_file(tmp_path / "s" / "model.safetensors")
    assert sum(tensor.numel() for tensor in stored.values()) == count
    assert f"{others[0]}.expand.weight" in {
        *stored,
        *json.loads((tmp_path / "s" / "config.json").read_text())["aliases"],
    }
    loaded = from_pretrained(tmp_path / "s", make())
    assert torch.equal(loaded(x), student(x))
    assert sum(p.numel() for p in loaded.parameters()) == count
    dense = student.to_dense()
    assert len({id(dense.get_submodule(path).weight) for path in (first, *others)}) == 1
    assert len({id(dense.get_submodule(path).bias) for path in (first, *others)}) == len(others) + 1
    torch.testing.assert_close(dense(x), student(x), rtol=0, atol=1e-10)


@both
def test_gradients_add_up_in_the_one_pair(make: type[nn.Module]) -> None:
    (_, student), x = student_of(make), inputs(make, 6)
    _, first, others = NETWORKS[make]
    separate = untied(student.model, others)
    for model in (student.model, separate):
        model(x).square().sum().backward()
    names = [name for name, p in low_rank_layers(student.model)[first].named_parameters() if p.ndim > 1]
    assert len(names) >= 2
    for name in names:
        parts = [separate.get_parameter(f"{path}.{name}").grad for path in (first, *others)]
        assert all(float(gradient.abs().sum()) > 0 for gradient in parts)
        torch.testing.assert_close(student.model.get_parameter(f"{first}.{name}").grad, sum(parts))
    assert all(p.grad is not None for p in student.parameters())


def test_means_are_not_given_back_so_they_count() -> None:
    """Each layer reads another mean: no single shift suits all, and S must not be centred."""
    model, x = made(Decoders), inputs(Decoders)
    spec = inspect(model, x[:2])
    sketches = sketch(model, spec, x.split(12))
    shared, other = row(spec, "early"), row(spec, "encode")
    assert (absorbs(shared, sketches["early"]), absorbs(other, sketches["encode"])) == (False, True)
    kfac = ANALYTIC["kfac"]
    assert (kfac.metric_for(shared, sketches["early"]).centred, kfac.metric_for(other, sketches["encode"]).centred) == (
        False,
        True,
    )
    generation = kfac.generate(spec, sketches, Budget(params=0.5))
    assert generation.factors.layers["early"].bias is None


def test_they_are_not_refitted() -> None:
    model, x = made(Decoders), inputs(Decoders)
    spec = inspect(model, x[:2])
    sketches = sketch(model, spec, x.split(12))
    student = build_student(model, spec, ANALYTIC["kfac"].generate(spec, sketches, Budget(params=0.5)))
    before = copy.deepcopy(student.model.state_dict())
    reconstruct(model, student, spec, sketches, x)
    changed = {name for name, value in student.model.state_dict().items() if not torch.equal(before[name], value)}
    assert "encode.expand.weight" in changed
    assert not any(name.startswith(("early", "late")) for name in changed)


@pytest.mark.parametrize("generator", ["svd", "prior", "hypernet"])
@both
def test_without_data(make: type[nn.Module], generator: str) -> None:
    model, x = made(make), inputs(make, 2)
    student = compress(model, Budget(params=0.5), generator=generator, example=x)
    assert set(NETWORKS[make][2]) <= set(student.ranks)
    assert student(x).isfinite().all()


def test_a_shared_bias_stays_shared(tmp_path: Path) -> None:
    class Alike(Decoders):
        def __init__(self) -> None:
            super().__init__()
            self.late.bias = self.early.bias

    model, x = made(Alike), inputs(Decoders)
    spec = inspect(model, x[:2])
    assert sum(layer.params for layer in spec.layers) == spec.params
    student = compress(model, Budget(params=0.6), x.split(12), "kfac")
    assert student.model.late.bias is student.model.early.bias
    student.save_pretrained(tmp_path / "s")
    loaded = from_pretrained(tmp_path / "s", Alike())
    assert loaded.model.late.bias is loaded.model.early.bias
    assert torch.equal(loaded(x), student(x))
    dense = student.to_dense()
    assert dense.late.bias is dense.early.bias


@pytest.mark.parametrize("also", ["", "late", "early"])
def test_a_bias_that_somebody_else_holds_keeps_its_layer_dense(also: str) -> None:
    """BERT's head: ``self.decoder.bias = self.bias``. So does one that is held by a layer of a group, for the group."""

    class Head(Decoders):
        def __init__(self) -> None:
            super().__init__()
            self.bias = (self.get_submodule(also) if also else self.encode).bias

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.bias.sum()

    model, x = made(Head), inputs(Decoders)
    spec = inspect(model, x[:2])
    bound = ("early", "late") if also else ("encode",)
    free = {"encode", "early", "late", "head"} - {*bound}
    assert {path for layer in spec.candidates for path in layer.paths} == free
    for path in bound:
        assert row(spec, path).status is Status.TIED
        assert row(spec, path).reason.startswith("its bias is held by the model itself, too")
    student = compress(model, Budget(params=0.8), x.split(12), "kfac")
    assert sum(p.numel() for p in student.parameters()) == student.report["student"]["params"]
    assert student.model.bias is (student.model.get_submodule(also) if also else student.model.encode).bias


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_norm_whose_parameters_another_holds_gives_nothing_back(part: str) -> None:
    class Norms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 12, 3, bias=False), nn.Conv2d(12, 12, 3, bias=False)
            self.c, self.head = nn.Conv2d(12, 12, 1, bias=False), nn.Linear(12, 5)
            self.norm, self.other, self.own = (nn.BatchNorm2d(12) for _ in range(3))
            setattr(self.other, part, getattr(self.norm, part))

        def forward(self, x: Tensor) -> Tensor:
            x = self.other(self.b(self.norm(self.a(x)).relu())).relu()
            logits: Tensor = self.head(self.own(self.c(x)).relu().mean((2, 3)))
            return logits

    model, x = made(Norms), inputs(Dilated)
    assert {layer.name: layer.follower for layer in inspect(model, x[:2]).candidates} == {
        "a": None,
        "b": None,
        "c": "own",
        "head": None,
    }
    student = compress(model, Budget(params=0.5), x.split(12), "kfac").model
    assert getattr(student.other, part) is getattr(student.norm, part)
    assert torch.equal(getattr(student.norm, part), getattr(model.norm, part))


def test_a_projection_with_the_bias_of_another_is_not_taken_apart() -> None:
    model = made(Blocks)
    model.third.out.bias = None
    model.third.bias = model.third.qkv.bias
    assert unpack(model) is model
    student = compress(model, Budget(params=0.8), generator="svd", example=torch.randn(2, 12, dtype=torch.float64))
    assert student.model.third.bias is student.model.third.qkv.bias


def test_frozen_ones_stay_frozen() -> None:
    model, x = made(Decoders), inputs(Decoders, 8)
    model.early.weight.requires_grad_(False)
    student = compress(model, Budget(params=0.6), generator="svd", example=x)
    for path in ("early", "late"):
        assert not any(part.weight.requires_grad for part in low_rank_layers(student.model)[path])
    assert not student.to_dense().late.weight.requires_grad


def test_a_student_of_a_student() -> None:
    _, student = student_of(Decoders, 0.8)
    x = inputs(Decoders, 8)
    again = compress(student.model, Budget(params=0.6), generator="svd", example=x)
    inner = [name for name in again.ranks if name.startswith("early.")]
    assert inner
    assert {name.replace("early", "late") for name in inner} <= set(again.ranks)
    dense = again.to_dense()
    assert dense.late.weight is dense.early.weight
    torch.testing.assert_close(dense(x), again(x), rtol=0, atol=1e-10)


class Block(nn.Module):
    """A stand-in for timm's attention: a fused projection by timm's name."""

    def __init__(self, qkv: nn.Linear) -> None:
        super().__init__()
        self.qkv, self.out = qkv, nn.Linear(36, 12)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = x + self.out(self.qkv(x).tanh())
        return output


class Blocks(nn.Module):
    """Two blocks with one projection weight, and one block with its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (Block(nn.Linear(12, 36)) for _ in range(3))
        self.second.qkv.weight = self.first.qkv.weight

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.third(self.second(self.first(x)))
        return output


def test_a_shared_projection_is_not_taken_apart(tmp_path: Path) -> None:
    model, x = made(Blocks), torch.randn(4, 12, dtype=torch.float64)
    apart = unpack(model)
    assert [name for name, m in apart.named_modules() if isinstance(m, SplitProjection)] == ["third.qkv"]
    assert row(inspect(apart, x), "first.qkv").shared == ("second.qkv",)
    student = compress(model, Budget(params=0.5), generator="svd", example=x)
    assert {"first.qkv", "second.qkv"} <= set(student.ranks)
    student.save_pretrained(tmp_path / "s")
    loaded = from_pretrained(tmp_path / "s", Blocks())
    assert torch.equal(loaded(x), student(x))
    dense = student.to_dense()
    assert dense.second.qkv.weight is dense.first.qkv.weight
    assert type(dense.third.qkv) is nn.Linear
    torch.testing.assert_close(dense(x), student(x), rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["onnx", "torch-export"])
def test_export(kind: str, tmp_path: Path) -> None:
    student = compress(made(Decoders).float(), Budget(params=0.5), generator="svd", example=torch.randn(2, 30))
    assert {"early", "late"} <= set(student.ranks)
    done = hypercompress.export(student, tmp_path / "student", kind, input_size=(30,))
    assert done.max_difference < 1e-5


def test_their_times_are_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that moves on one second whenever it is read, so each call takes one."""
    ticks = itertools.count()
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: float(next(ticks))))
    model, x = made(Decoders), inputs(Decoders, 4)
    spec = inspect(model, x)
    _, times, _ = latency._inside(model, spec, lambda: model(x), lambda: None)
    assert times == {layer.name: 1e9 * layer.calls for layer in spec.candidates}
    assert times["early"] == 2e9


def test_meta_training_adapts_the_one_weight() -> None:
    """Called first and registered last: the weight has another name among the teacher's parameters."""
    torch.manual_seed(0)
    x, network = inputs(Decoders).float(), Hypernetwork(HypernetConfig(16, 1, 2))
    batches = x.split(12)
    case = prepare_case("decoders", made(Decoders).float(), batches)
    adapted, generated = (
        evaluate_case(network, case, Budget(params=0.5), batches, steps_batches=steps) for steps in (batches, ())
    )
    assert 0 < adapted < generated


class Autoencoder(nn.Module):
    """A layer ``a``, and ``b`` that shares its weight in a way that no pair of factors serves."""

    def __init__(self, change: Callable[["Autoencoder"], None]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.run: Callable[[Autoencoder, Tensor], Tensor] = lambda model, x: model.b(model.a(x))
        change(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.run(self, x))


def as_view(model: Autoencoder) -> None:
    model.b.weight = nn.Parameter(model.a.weight.detach().t())


def frozen_apart(model: Autoencoder) -> None:
    model.b.weight = nn.Parameter(model.a.weight.detach(), requires_grad=False)


def transposed_class(model: Autoencoder) -> None:
    class Transposed(nn.Module):
        def __init__(self, weight: nn.Parameter) -> None:
            super().__init__()
            self.weight = weight

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    model.b = Transposed(model.a.weight)  # type: ignore[assignment]


def in_a_function(model: Autoencoder) -> None:
    model.b.weight = model.a.weight
    model.run = lambda model, x: F.linear(model.b(model.a(x)), model.a.weight)


def never_called(model: Autoencoder) -> None:
    model.b.weight = model.a.weight
    model.run = lambda model, x: model.a(x).relu()


def embedded(model: Autoencoder) -> None:
    model.b = nn.Embedding(12, 12)  # type: ignore[assignment]
    model.b.weight = model.a.weight
    model.run = lambda model, x: model.a(x) + model.b(torch.zeros(len(x), dtype=torch.int64))


def with_an_argument(model: Autoencoder) -> None:
    model.a, model.b = (nn.ConvTranspose1d(12, 12, 3, stride=2) for _ in range(2))  # type: ignore[assignment]
    model.b.weight = model.a.weight
    model.run = lambda model, x: model.a(x[..., None]).mean(-1) + model.b(x[..., None], output_size=(4,)).mean(-1)  # type: ignore[call-arg]


def standardised(conv: type[nn.Module], **options: Any) -> Callable[[Autoencoder], None]:
    def change(model: Autoencoder) -> None:
        model.a, model.b = conv(12, 12, 3, padding=1), conv(12, 12, 3, padding=1, **options)
        model.b.weight = model.a.weight
        model.run = lambda model, x: model.b(model.a(x[..., None, None]))[..., 0, 0]

    return change


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        (as_view, Status.TIED, "b holds it as another parameter (a view, or frozen apart)"),
        (frozen_apart, Status.TIED, "b holds it as another parameter (a view, or frozen apart)"),
        (transposed_class, Status.TIED, "b is of another class (Transposed)"),
        (in_a_function, Status.TIED, "its weight is read directly by the model itself"),
        (never_called, Status.TIED, "b: its forward was never called in a pass of the example"),
        (embedded, Status.TIED, "b is of another class (Embedding)"),
        (
            with_an_argument,
            Status.TIED,
            "b: it is called with more than one argument (an output size?); its twin takes",
        ),
        (standardised(StdConv2d, eps=0.1), Status.TIED, "b makes another matrix of it"),
        (standardised(ScaledStdConv2d), Status.TIED, "b has parameters besides weight and bias"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_any_other_sharing_stays_and_says_why(
    change: Callable[[Autoencoder], None], status: Status, reason: str
) -> None:
    torch.manual_seed(0)
    model, x = Autoencoder(change).eval(), torch.randn(3, 12)
    layer = row(inspect(model, x), "a")
    assert layer.status is status
    assert layer.reason.startswith(reason)
    assert layer.reason.endswith("; shares its weight with b")
    assert layer.shared == ()
    student = compress(model, Budget(params=0.95), generator="svd", example=x)
    assert not {"a", "b"} & set(student.ranks)


def test_an_encoder_that_is_read_transposed_is_no_layer() -> None:
    def change(model: Autoencoder) -> None:
        model.run = lambda model, x: F.linear(model.b(model.a(x)), model.a.weight.t())

    model = Autoencoder(change)
    layer = row(inspect(model, torch.randn(3, 12)), "a")
    assert (layer.status, layer.reason) == (Status.UNSUPPORTED, "its weight is read directly by the model itself")


def test_standardised_layers_of_one_matrix_are_one() -> None:
    model, x = Autoencoder(standardised(StdConv2d)), torch.randn(3, 12)
    layer = row(inspect(model, x), "a")
    assert (layer.status, layer.shared, layer.side) == (Status.FACTORED, ("b",), Side.OUTPUT)
    student = compress(model, Budget(params=0.5), generator="svd", example=x)
    assert {"a", "b"} <= set(student.ranks)
