"""Grouped convolutions: each group is a matrix of its own, and goes the way that it would go as a layer of its own."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from timm.layers.std_conv import StdConv2d
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import hypercompress
from hypercompress import Budget, compress, from_pretrained
from hypercompress.curvature import measure
from hypercompress.factorize import Frame, Metric, plain_frame, weighted_frame
from hypercompress.fisher import fisher_probe
from hypercompress.generator import ANALYTIC, HypernetConfig, HypernetGenerator, Hypernetwork
from hypercompress.generator.analytic import AnalyticGenerator
from hypercompress.generator.emission import rotated
from hypercompress.generator.hypernetwork import channel_changes, tokens_of
from hypercompress.generator.prior import prior_curvature
from hypercompress.generator.start import corrected, start_of
from hypercompress.inspection import inspect
from hypercompress.kinds import by_group, factors_of, fill, kind_of, low_rank_like
from hypercompress.latency import _forms, measure_latency
from hypercompress.meta import Objective, generate, meta_loss, prepare_case
from hypercompress.reconstruction import reconstruct
from hypercompress.sketch import sketch
from hypercompress.specs import (
    Curvature,
    Factors,
    Generation,
    LayerSpec,
    ModelSpec,
    NormStatistics,
    RankPlan,
    Side,
    Sketch,
    Status,
    Unit,
)
from hypercompress.student import build_student, low_rank_layers
from tests.strategies import grouped, random


def side_of(weight: Tensor) -> Side:
    return Side.OUTPUT if weight.shape[-2] <= weight.shape[-1] else Side.INPUT


def factored(dense: Any, rank: int) -> Any:
    """The plain SVD of each group at a rank."""
    kind = kind_of(dense)
    assert kind is not None
    weight, layer = kind.matrix(dense), low_rank_like(dense, rank)
    fill(layer, plain_frame(weight, side_of(weight)).factors(weight, rank), dense.bias)
    return layer


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel lengths")
@settings(max_examples=500)
@given(grouped())
def test_full_rank_in_every_group_is_the_dense_layer(case: tuple[nn.Module, Tensor]) -> None:
    dense, x = case
    kind, wanted = kind_of(dense), dense(x)
    assert kind is not None
    layer = factored(dense, min(kind.matrix(dense).shape[-2:]))
    tolerance = 1e-10 * float(wanted.detach().abs().max())
    assert layer.weight.shape == dense.weight.shape
    torch.testing.assert_close(layer(x), wanted, rtol=0, atol=tolerance)
    torch.testing.assert_close(layer.to_dense()(x), wanted, rtol=0, atol=tolerance)
    torch.testing.assert_close(factors_of(layer).product(), kind.matrix(dense), rtol=0, atol=tolerance)


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel lengths")
@settings(max_examples=100)
@given(grouped())
def test_rows_times_the_matrix_of_each_group_are_its_outputs(case: tuple[nn.Module, Tensor]) -> None:
    dense, x = case
    kind = kind_of(dense)
    assert kind is not None
    bias = 0 if dense.bias is None else dense.bias
    rows = kind.input_rows(dense, x)
    outputs = by_group(kind.rows(dense(x)) - bias, kind.groups(dense))
    torch.testing.assert_close(rows @ kind.matrix(dense).mT, outputs)
    torch.testing.assert_close(kind.input_mean(dense, x), rows.mean(-2))


@settings(max_examples=40)
@given(grouped())
def test_each_group_is_cut_to_its_own_best_directions(case: tuple[nn.Module, Tensor]) -> None:
    dense, x = case
    kind = kind_of(dense)
    assert kind is not None
    layer = factored(dense, 1)
    U, s, Vh = torch.linalg.svd(kind.matrix(dense), full_matrices=False)
    wanted = (U[..., :1] * s[:, None, :1]) @ Vh[:, :1]
    torch.testing.assert_close(layer.weight.detach(), wanted.reshape(dense.weight.shape), rtol=0, atol=1e-10)
    dense = layer.to_dense()
    torch.testing.assert_close(dense(x), layer(x), rtol=0, atol=1e-10)
    assert (dense.groups, layer.groups) == (kind.groups(dense), dense.groups)


class Network(nn.Module):
    """A grouped convolution between two plain ones; or (``apart``) its groups as convolutions of their own."""

    def __init__(self, channels: tuple[int, int], kernel: int, *, bias: bool = True, norm: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, channels[0], 3, padding=1)
        self.stem_norm = nn.BatchNorm2d(channels[0])
        self.conv: nn.Module = nn.Conv2d(*channels, kernel, padding=kernel // 2, groups=4, bias=bias)
        self.norm = nn.BatchNorm2d(channels[1]) if norm else nn.Identity()
        self.head = nn.Linear(channels[1], 6)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.data.uniform_(0.5, 2)
                for tensor in (module.bias, module.running_mean):
                    tensor.data.uniform_(-0.5, 0.5)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.norm(self.conv(self.stem_norm(self.stem(x)).relu())).tanh().mean((2, 3)))
        return output


class Apart(nn.ModuleList):
    """The groups of a convolution as convolutions of their own."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        inside, outside = conv.in_channels // conv.groups, conv.out_channels // conv.groups
        for group in range(conv.groups):
            part = nn.Conv2d(inside, outside, conv.kernel_size, padding=conv.padding, bias=conv.bias is not None)
            part.weight.data = conv.weight.data.chunk(conv.groups)[group].clone()
            if conv.bias is not None:
                part.bias.data = conv.bias.data.chunk(conv.groups)[group].clone()
            self.append(part)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x_j) for part, x_j in zip(self, x.chunk(len(self), 1), strict=True)], 1)


def apart(model: Network) -> Network:
    model = copy.deepcopy(model)
    assert isinstance(model.conv, nn.Conv2d)
    model.conv = Apart(model.conv)
    return model.eval()


def images(count: int = 24) -> Tensor:
    return random(count, 3, 6, 6) + 0.2


def network(side: str, kernel: int, **options: bool) -> Network:
    """One whose grouped matrices are narrow or wide."""
    model = Network((24, 20) if side == "output" else (16, 16 * kernel**2 + 12), kernel, **options)
    layer = conv_of(inspect(model, images(2).double()))
    assert (layer.status, layer.side, layer.groups) == (Status.FACTORED, Side(side), 4)
    return model


def conv_of(spec: ModelSpec) -> LayerSpec:
    (layer,) = (layer for layer in spec.layers if layer.name == "conv")
    return layer


CASES = pytest.mark.parametrize(("side", "kernel"), [("output", 3), ("output", 1), ("input", 3), ("input", 1)])


def part(curvature: Curvature, group: int) -> Curvature:
    fields = {name: getattr(curvature, name)[group] for name in ("signal", "fisher", "gram", "mean")}
    return Curvature(curvature.side, **fields)


def same_curvature(one: Curvature, other: Curvature) -> None:
    assert one.side is other.side
    for name in ("signal", "fisher", "gram", "mean"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-8, atol=1e-12)


@CASES
def test_curvature_of_a_group_is_that_of_a_layer_of_its_own(side: str, kernel: int) -> None:
    model, x = network(side, kernel), images()
    found = measure(model, inspect(model, x[:2]), x.split(8))
    theirs = measure(apart(model), inspect(apart(model), x[:2]), x.split(8))
    for group in range(4):
        same_curvature(part(found["conv"], group), theirs[f"conv.{group}"])


@CASES
def test_guessed_curvature_of_a_group_is_that_of_a_layer_of_its_own(side: str, kernel: int) -> None:
    model = network(side, kernel)
    spec = inspect(model, images(2))
    layer, known = conv_of(spec), sketch(model, spec, None)["conv"]
    assert (layer.follower, layer.feeder) == ("norm", "stem_norm")
    guess = prior_curvature(layer, known)

    def of_group(norm: NormStatistics | None, group: int) -> NormStatistics:
        assert norm is not None
        parts = (t.chunk(4)[group] for t in (norm.weight, norm.bias, norm.mean, norm.variance))
        return NormStatistics(*parts, norm.eps, norm.moments)

    shares = []
    for group in range(4):
        alone = replace(layer, out=layer.rows, groups=1, input_positions=0)
        norms = of_group(known.follower, group), of_group(known.feeder, group)
        single = prior_curvature(alone, Sketch(known.weight[group], None, None, *norms))
        ours = part(guess, group)
        # G is relative to the power of the whole layer's output: a group's own scale is its share of it.
        shares.append(float(ours.fisher.diagonal().sum() / single.fisher.diagonal().sum()))
        same_curvature(replace(ours, fisher=ours.fisher / shares[-1]), single)
    assert sum(shares) == pytest.approx(1.0)


def projections(frame: Frame, rank: int) -> Tensor:
    left, right = frame.kept(rank)
    return left @ right


@CASES
@pytest.mark.parametrize("dead", [False, True])
def test_directions_of_a_group_are_those_of_its_own_matrix(side: str, kernel: int, dead: bool) -> None:
    model, x = network(side, kernel), images()
    curvature = measure(model, inspect(model, x[:2]), [x])["conv"]
    if dead:  # nothing that the second group says is heard
        curvature.fisher[1] = 0
    frame = weighted_frame(curvature, Metric())
    singles = [weighted_frame(part(curvature, group), Metric()) for group in range(4)]
    torch.testing.assert_close(frame.energy, torch.stack([single.energy for single in singles]))
    torch.testing.assert_close(frame.total, frame.energy.sum(0))
    assert (frame.total.diff() <= 0).all()
    for group, single in enumerate(singles):
        if dead and group == 1:
            assert not single.energy.any()
            continue
        for rank in (1, 2):
            torch.testing.assert_close(projections(frame, rank)[group], projections(single, rank), rtol=1e-6, atol=1e-8)
            turned = [
                left @ right
                for left, right in (
                    rotated(frame, curvature.gram, rank, torch.tensor(0.3), None),
                    rotated(single, curvature.gram[group], rank, torch.tensor(0.3), None),
                )
            ]
            torch.testing.assert_close(turned[0][group], turned[1], rtol=1e-5, atol=1e-7)


@CASES
def test_error_in_the_metric_is_the_discarded_energy_of_all_groups(side: str, kernel: int) -> None:
    model, x = network(side, kernel), images()
    spec = inspect(model, x[:2])
    item = sketch(model, spec, [x])["conv"]
    assert item.curvature is not None
    frame = weighted_frame(item.curvature, Metric(damping=1e-12))
    conv, seen = model.conv, model.stem_norm(model.stem(x)).relu()
    kind = kind_of(conv)
    assert kind is not None
    rows = kind.input_rows(conv, seen).detach()
    rows = rows - rows.mean(1, keepdim=True)
    S, G = rows.mT @ rows / rows.shape[1], output_fisher(model, x)
    for rank in (1, 2):
        error = item.weight - frame.factors(item.weight, rank).product()
        lost = torch.einsum("gij,gjd,gde,gie->", G, error, S, error)
        assert float(lost) == pytest.approx(float(frame.total[rank:].sum()), rel=1e-5, abs=1e-12)


def output_fisher(model: Network, x: Tensor) -> Tensor:
    """G of each group of the grouped convolution, as `measure` draws it for one batch."""
    seen: list[Tensor] = []
    handle = model.conv.register_forward_hook(lambda _m, _i, output: seen.append(output))
    scalar = fisher_probe(model(x), torch.Generator().manual_seed(0))
    handle.remove()
    (gradient,) = torch.autograd.grad(scalar, seen)
    rows = by_group(gradient.movedim(1, -1).flatten(0, -2), 4)
    return rows.mT @ rows / len(x)


@pytest.mark.parametrize("unit", [Unit.PARAMS, Unit.MACS])
@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_costs_are_what_is_counted(unit: Unit, share: float) -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 24, 3, stride=2, padding=1, groups=2, bias=False),
        nn.BatchNorm2d(24),
        nn.Conv2d(24, 64, 1, groups=4),
        StdConv2d(64, 32, 3, groups=4, padding=1),
        nn.Conv2d(32, 32, 3, groups=32),
        nn.Flatten(),
        nn.Linear(32 * 8, 9),
    ).eval()
    x = torch.randn(2, 4, 11, 8)
    budget = Budget(params=share) if unit is Unit.PARAMS else Budget(macs=share)
    before = copy.deepcopy(model.state_dict())
    student = compress(model, budget, None, "svd", example=x)
    spec = inspect(model, x)
    assert [layer.groups for layer in spec.layers if layer.groups > 1] == [2, 4, 4, 32]
    assert not any(layer.projects for layer in spec.layers if layer.groups > 1)
    assert sum(layer.dense_macs for layer in spec.layers) == spec.macs == counted(model, x)
    assert spec.layers[4].reason == "depthwise convolution (groups=32)"
    assert set(student.ranks) & {"0", "2", "3"}
    assert student.report["student"]["params"] == sum(p.numel() for p in student.parameters())
    assert student.report["student"]["macs"] == counted(student, x)
    for name, rank in student.ranks.items():
        (layer,) = (layer for layer in spec.layers if layer.name == name)
        assert 1 <= rank <= layer.max_rank or layer.projects
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def counted(model: nn.Module, x: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return int(counter.get_total_flops()) // 2 // len(x)


def test_what_pays_is_judged_group_by_group() -> None:
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 64, 3, padding=1, groups=8),  # depthwise with a multiplier
        nn.Conv2d(64, 32, 1, groups=32),
    )
    layers = inspect(model, torch.randn(2, 8, 5, 5)).layers
    assert [(layer.status, layer.reason) for layer in layers] == [
        (Status.KEPT, "depthwise convolution (groups=8)"),
        (Status.FACTORED, ""),
        (Status.KEPT, "1 x 2 in each of 32 groups: even rank 1 is no smaller than dense"),
    ]
    wide = layers[1]
    assert (wide.out, wide.rows, wide.d, wide.channels) == (64, 8, 9, 8)
    assert (wide.max_rank, wide.full_rank, wide.rank_params) == (4, 8, 64 + 72)
    assert wide.dense_params == 64 * 9 == sum(p.numel() for p in model[1].parameters()) - 64


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


def test_a_compiler_gets_the_weight_of_every_group() -> None:
    layer, x = factored(nn.Conv2d(8, 12, 3, groups=4, dtype=torch.float64), 2), random(2, 8, 5, 5)

    def reads(x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, layer.weight, layer.bias, groups=4)

    torch.testing.assert_close(torch.compile(reads, backend="eager", fullgraph=True)(x), layer(x))


@pytest.mark.parametrize(("form", "suffix"), [("onnx", ".onnx"), ("torch-export", ".pt2")])
def test_it_is_exported(form: str, suffix: str, tmp_path: Path) -> None:
    exported = hypercompress.export(student_of(), tmp_path / f"student{suffix}", form, input_size=(3, 6, 6))
    assert exported.max_difference < 1e-4


def test_ranks_that_are_timed_fill_kernels_with_the_channels_of_all_groups(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(96, 96, 3, padding=1, groups=4), nn.Flatten(), nn.Linear(96 * 16, 5)).eval()
    x = torch.randn(1, 96, 4, 4)
    spec = inspect(model, x)
    forms = list(_forms(spec.layers[0]))
    assert [rank for rank, _ in forms] == list(range(4, spec.layers[0].max_rank + 1, 4))
    assert all(rank * 4 % 16 == 0 and inner == 0 for rank, inner in forms)
    timed = measure_latency(model, spec, x, cache=tmp_path / "cache.json")
    assert timed.layers[0].measured is not None
    assert all(time < timed.layers[0].measured.dense for _, _, time in timed.layers[0].measured.forms)
