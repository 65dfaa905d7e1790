"""Layers that hold one weight: one candidate and one pair of factors."""

import copy
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
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
from hypercompress.reconstruction import reconstruct
from hypercompress.sketch import sketch
from hypercompress.specs import Curvature, Factors, Generation, RankPlan, Status, Unit
from hypercompress.student import build_student, low_rank_layers
from tests.lookup import row
from tests.tied import NETWORKS, Decoders, Make, inputs, made


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
