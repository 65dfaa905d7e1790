"""Students of grouped convolutions: moments, refit, hypernetwork and meta-gradients go group by group."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import hypercompress
from hypercompress import Budget, compress, from_pretrained
from hypercompress.factorize import Metric, plain_frame
from hypercompress.generator import ANALYTIC, HypernetConfig, HypernetGenerator, Hypernetwork
from hypercompress.generator.analytic import AnalyticGenerator
from hypercompress.generator.hypernetwork import channel_changes, tokens_of
from hypercompress.generator.start import corrected, start_of
from hypercompress.inspection import inspect
from hypercompress.meta import Objective, generate, meta_loss, prepare_case
from hypercompress.reconstruction import reconstruct
from hypercompress.sketch import sketch
from hypercompress.specs import (
    Factors,
    Generation,
    ModelSpec,
    RankPlan,
    Status,
    Unit,
)
from hypercompress.student import build_student, low_rank_layers
from tests.groups import CASES, Network, apart, conv_of, images, network


@CASES
@pytest.mark.parametrize("bias", [False, True])
def test_mean_and_variance_come_back_channel_by_channel(side: str, kernel: int, bias: bool) -> None:
    model, x = network(side, kernel, bias=bias), images()
    if not bias:  # what the norm behind knows of the mean is true
        model.norm.running_mean.copy_(outputs(model, x).mean((0, 2, 3)))
    spec = only_conv(inspect(model, x[:2]))
    sketches = sketch(model, spec, [x])
    generation = AnalyticGenerator("whole", Metric(), spread=1.0).generate(spec, sketches, at_rank(spec, 1))
    assert dict(generation.plan.ranks) == {"conv": 1}
    student = build_student(model, spec, generation)
    wanted, got = (m.norm(outputs(m, x)).detach() for m in (model, student.model))
    torch.testing.assert_close(got.mean((0, 2, 3)), wanted.mean((0, 2, 3)), rtol=1e-6, atol=1e-8)
    if not bias:  # within the bounds of what may be given back
        ratio = (wanted.var((0, 2, 3)) / got.var((0, 2, 3))).sqrt()
        scale = student.model.norm.weight / model.norm.weight
        free = (scale > 0.51) & (scale < 1.99)
        assert free.any()
        torch.testing.assert_close(ratio[free], torch.ones_like(ratio[free]), rtol=1e-6, atol=1e-8)


def outputs(model: Any, x: Tensor) -> Tensor:
    """What the grouped convolution gives."""
    given: Tensor = model.conv(model.stem_norm(model.stem(x)).relu()).detach()
    return given


def only_conv(spec: ModelSpec) -> ModelSpec:
    """Nothing but the grouped convolution may be factored."""
    layers = (
        layer if layer.name == "conv" or layer.status is not Status.FACTORED else replace(layer, status=Status.KEPT)
        for layer in spec.layers
    )
    return replace(spec, layers=tuple(layers))


def at_rank(spec: ModelSpec, rank: int) -> Budget:
    layer = conv_of(spec)
    return Budget(params=(spec.params - layer.dense_params + layer.cost(Unit.PARAMS, rank)) / spec.params)


@CASES
@pytest.mark.parametrize("norm", [False, True])
def test_the_refit_of_a_group_is_that_of_a_layer_of_its_own(side: str, kernel: int, norm: bool) -> None:
    """The same student made of four small layers, each refitted by itself; a bias takes the intercepts."""
    model, x = network(side, kernel, norm=norm), images(40)
    students = []
    for teacher in (model, apart(model)):
        spec = inspect(teacher, x[:2])
        chosen = [layer for layer in spec.candidates if layer.name.startswith("conv")]
        sketches = sketch(teacher, spec, [x])
        factors = {
            layer.name: plain_frame(sketches[layer.name].weight, layer.side).factors(sketches[layer.name].weight, 2)
            for layer in chosen
        }
        saved = sum(layer.dense_params - layer.cost(Unit.PARAMS, 2) for layer in chosen)
        plan = RankPlan(dict.fromkeys(factors, 2), Unit.PARAMS, spec.params - saved, 1.0, None)
        student = build_student(teacher, spec, Generation(Factors(factors, {}), plan, "svd", 0.0))
        before = (student(x) - teacher(x)).square().mean()
        reconstruct(teacher, student, spec, sketches, x)
        assert (student(x) - teacher(x)).square().mean() < before
        students.append(student)
    torch.testing.assert_close(students[0](x), students[1](x), rtol=0, atol=1e-9)


def noisy(noise: float = 0.5) -> Hypernetwork:
    network = Hypernetwork(HypernetConfig(width=16, depth=1, heads=2))
    generator = torch.Generator().manual_seed(2)
    for parameter in network.parameters():
        parameter.data += noise * torch.randn(parameter.shape, generator=generator)
    return network


@pytest.mark.parametrize("data", [True, False])
@CASES
def test_hypernetwork_starts_at_the_analytic_student_and_bends_it(side: str, kernel: int, data: bool) -> None:
    model, x = network(side, kernel), images()
    spec = only_conv(inspect(model, x[:2]))
    sketches, budget = sketch(model, spec, [x] if data else None), at_rank(spec, 2)
    plain = ANALYTIC["kfac" if data else "prior"].generate(spec, sketches, budget).factors.layers
    same = HypernetGenerator(Hypernetwork()).generate(spec, sketches, budget).factors.layers
    bent = HypernetGenerator(noisy()).generate(spec, sketches, budget)
    assert all(torch.equal(plain[name].product(), same[name].product()) for name in plain)
    student = build_student(model, spec, bent)
    assert student.ranks == {"conv": 2}
    assert not torch.equal(plain["conv"].product(), bent.factors.layers["conv"].product())
    assert student(x).isfinite().all()
    start = start_of(spec, sketches)
    if not data:
        outputs = noisy()(tokens_of(spec, sketches, start, budget), False)
        changes = channel_changes(noisy(), spec, sketches, start, outputs)
        assert changes["conv"].shape == (start.curvatures["conv"].bare.numel(),)
        changed = corrected(spec, sketches, start, changes).curvatures["conv"]
        factor = changes["conv"].double().exp().reshape(changed.bare.shape)
        torch.testing.assert_close(changed.bare, start.curvatures["conv"].bare * factor, rtol=1e-6, atol=1e-12)


def regrouped(model: Network) -> Network:
    """The groups in another order; the same function."""
    model, order = copy.deepcopy(model), torch.tensor([2, 0, 3, 1])

    def turn(tensor: Tensor, dim: int = 0) -> Tensor:
        return torch.stack(tensor.chunk(4, dim))[order].movedim(0, dim).flatten(dim, dim + 1)

    for name, module in model.named_children():
        if name != "head":
            for tensor in (*module.parameters(), *module.buffers()):
                tensor.data = turn(tensor) if tensor.ndim else tensor
    model.head.weight.data = turn(model.head.weight.data, 1)
    return model


@pytest.mark.parametrize("data", [True, False])
@CASES
def test_tokens_do_not_know_the_order_of_the_groups(side: str, kernel: int, data: bool) -> None:
    model, x = network(side, kernel), images()
    other = regrouped(model)
    torch.testing.assert_close(other(x), model(x))
    found = []
    for each in (model, other):
        spec = inspect(each, x[:2])
        sketches = sketch(each, spec, [x] if data else None)
        found.append(tokens_of(spec, sketches, start_of(spec, sketches), Budget(params=0.7)))
    for name in ("layers", "sketches", "budget"):
        torch.testing.assert_close(getattr(found[0], name), getattr(found[1], name), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("adaptation", ["none", "steps", "refit"])
@pytest.mark.parametrize("side", ["output", "input"])
def test_meta_gradients_pass_through_every_group(side: str, adaptation: str, measured: bool) -> None:
    model = network(side, 3).float()
    batches = list(images(32).float().split(8))
    case = prepare_case("grouped", model, batches)
    hypernetwork = noisy(0.1)
    budget = at_rank(case.spec, 2)
    emission, regression = generate(hypernetwork, case, budget, measured=measured, refit=adaptation == "refit")
    assert emission.layers["conv"].expand.shape[0] == 4
    inner = batches[:3] if adaptation == "steps" else batches[:1]
    refit = torch.cat(batches) if adaptation == "refit" else None
    loss, kl = meta_loss(case, emission, inner, Objective(), refit)
    emission.layers["conv"].expand.retain_grad()
    (loss + regression).backward()
    assert kl >= 0
    gradients = [parameter.grad for parameter in hypernetwork.heads.layer.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() and gradient.any() for gradient in gradients)
    reached = emission.layers["conv"].expand.grad
    if adaptation != "refit":  # there the fitted factor is a constant
        assert reached is not None
        assert reached.flatten(1).any(1).all()


def student_of(side: str = "output") -> hypercompress.Student:
    model = network(side, 3).float()
    student = compress(model, at_rank(inspect(model, images(2).float()), 2), images(64).float().split(16), "kfac")
    assert "conv" in student.ranks
    return student


def test_gradients_reach_every_factor() -> None:
    student = student_of().train()
    student(images(8).float()).square().sum().backward()
    layer = low_rank_layers(student.model)["conv"]
    for factor in (layer.reduce, layer.expand):
        assert isinstance(factor.weight, Tensor)
        assert factor.weight.grad is not None
        assert factor.weight.grad.flatten(1).any(1).all()


def test_it_comes_back_from_disk_bit_for_bit(tmp_path: Path) -> None:
    student, x = student_of(), images(4).float()
    student.save_pretrained(tmp_path / "student")
    again = from_pretrained(tmp_path / "student", skeleton=network("output", 3).float())
    assert torch.equal(again(x), student(x))
    assert again.ranks == student.ranks
    dense = student.to_dense()
    assert dense.conv.groups == 4
    torch.testing.assert_close(dense(x), student(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("form", "suffix"), [("onnx", ".onnx"), ("torch-export", ".pt2")])
def test_it_is_exported(form: str, suffix: str, tmp_path: Path) -> None:
    exported = hypercompress.export(student_of(), tmp_path / f"student{suffix}", form, input_size=(3, 6, 6))
    assert exported.max_difference < 1e-4
