"""Emission: straight-through masks trade at constant cost, rotations are first-order perturbation theory."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypercompress.factorize import Metric, weighted_frame
from hypercompress.generator.emission import (
    TEMPERATURE,
    Scores,
    carried,
    emit,
    rotated,
    scores,
    straight_through,
)
from hypercompress.generator.heads import Outputs
from hypercompress.generator.start import Start, corrected, start_of
from hypercompress.inspection import inspect
from hypercompress.sketch import sketch
from hypercompress.specs import Budget, ModelSpec, Unit
from hypercompress.tokens import BANDS

HIDDEN = (20, 30, 26)


def images() -> Tensor:
    return torch.randn(64, 12, generator=torch.Generator().manual_seed(0)) + 0.5


def prepared(data: bool = True) -> tuple[nn.Module, ModelSpec, dict[str, Any], Start]:
    widths = (12, *HIDDEN, 5)
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b, bias=b != 30), nn.BatchNorm1d(b), nn.ReLU()]
    model = nn.Sequential(*layers[:-2])
    for module in model:
        if isinstance(module, nn.BatchNorm1d):
            module.running_var.uniform_(0.3, 2)
            module.weight.data.uniform_(0.5, 2)
    model.eval()
    spec = inspect(model, images()[:2])
    sketches = sketch(model, spec, [images()] if data else None)
    return model, spec, sketches, start_of(spec, sketches)


def outputs(n: int, seed: int | None = None, **fixed: float) -> Outputs:
    """All zero, or random, or one kind set."""
    generator = torch.Generator().manual_seed(seed or 0)

    def values(*shape: int) -> Tensor:
        return torch.zeros(shape) if seed is None else torch.rand(shape, generator=generator) - 0.5

    made = Outputs(*(values(n) for _ in range(6)), values(n, BANDS), torch.zeros(n, 4))
    return replace(made, **{key: torch.full_like(getattr(made, key), value) for key, value in fixed.items()})


@pytest.mark.parametrize("budget", [Budget(params=0.4), Budget(params=0.75), Budget(macs=0.6)], ids=str)
def test_masks_trade_layers_against_each_other_at_constant_cost(budget: Budget) -> None:
    _, spec, sketches, start = prepared()
    given = outputs(len(spec.candidates), seed=3)
    weight = given.weight.clone().requires_grad_()
    emission = emit(spec, sketches, start, replace(given, weight=weight), budget, training=True)
    cost = torch.zeros((), dtype=torch.float64)
    for layer in spec.candidates:
        if layer.name in emission.layers:
            mask = emission.layers[layer.name].mask
            assert mask is not None
            rank = emission.plan.ranks[layer.name]
            assert mask.tolist() == pytest.approx([1.0] * rank + [0.0] * (len(mask) - rank), abs=1e-6)
            assert len(mask) == carried(layer.full_rank, rank) == emission.layers[layer.name].reduce.shape[0]
            q = emission.plan.input_ranks.get(layer.name)
            cost = cost + mask.double().sum() * layer.step(budget.unit, q)
            inner = emission.layers[layer.name].inner
            if inner is not None:
                assert inner.mask is not None
                assert inner.mask.tolist() == pytest.approx([1.0] * q + [0.0] * (len(inner.mask) - q), abs=1e-6)
                cost = cost + inner.mask.double().sum() * layer.input_step(budget.unit, rank)
                both = layer.cost(budget.unit, rank, q)  # the product of the two ranks is counted on either side
                cost = cost + both - rank * layer.step(budget.unit, q) - q * layer.input_step(budget.unit, rank)
    assert float(cost.detach()) + spec.total(budget.unit) - sum(
        layer.dense_cost(budget.unit) for layer in spec.candidates if layer.name in emission.layers
    ) == pytest.approx(emission.plan.cost)
    (gradient,) = torch.autograd.grad(cost, weight)
    scale = sum(layer.rank_cost(budget.unit) for layer in spec.candidates)
    assert gradient.abs().max() < 1e-5 * scale


def test_mask_gradient_is_that_of_the_sigmoid_at_constant_cost() -> None:
    _, spec, _, start = prepared()
    plan = emit(spec, prepared()[2], start, outputs(len(spec.candidates)), Budget(params=0.5)).plan
    scored = {name: energy.clone().requires_grad_() for name, energy in start.energies.items()}
    plan = replace(plan, input_ranks={})
    masks = straight_through(spec, Scores(scored, {}), plan).outputs
    names = list(masks)
    heights, costs = [], []
    for layer in spec.candidates:
        if layer.name in masks:
            energy = start.energies[layer.name][: len(masks[layer.name])].clamp_min(1e-300)
            heights.append((energy / layer.rank_cost(Unit.PARAMS)).log())
            costs.append(torch.full_like(heights[-1], layer.rank_cost(Unit.PARAMS)))
    h, c = torch.cat(heights), torch.cat(costs)
    hard = torch.cat([masks[name] for name in names]).detach() > 0.5
    level = (h[hard].quantile(0.1) + h[~hard].quantile(0.9)) / 2
    slope = torch.sigmoid((h - level) / TEMPERATURE)
    slope = slope * (1 - slope) / TEMPERATURE
    jacobian = torch.diag(slope) - torch.outer(slope, c * slope) / (c * slope).sum()
    torch.testing.assert_close(c @ jacobian, torch.zeros_like(c), rtol=0, atol=1e-9)
    probe = torch.randn(len(h), dtype=h.dtype)
    total = sum(
        (m * p).sum() for m, p in zip(masks.values(), probe.split([len(m) for m in masks.values()]), strict=True)
    )
    gradients = torch.autograd.grad(total, [scored[name] for name in names])
    got = torch.cat(
        [g[: len(masks[name])] * scored[name][: len(masks[name])] for name, g in zip(names, gradients, strict=True)]
    )
    torch.testing.assert_close(got, (probe @ jacobian), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("data", [True, False], ids=["data", "no data"])
def test_budget_is_met_for_any_outputs(seed: int, data: bool) -> None:
    _, spec, sketches, start = prepared(data)
    given = outputs(len(spec.candidates), seed=seed + 1)
    for budget in (Budget(params=0.3), Budget(macs=0.55), Budget(params=1.0)):
        emission = emit(spec, sketches, start, given, budget)
        assert emission.plan.achieved <= budget.share
        factors = emission.factors()
        cost = spec.total(budget.unit) - sum(
            layer.dense_cost(budget.unit) - factors.layers[layer.name].rank * layer.rank_cost(budget.unit)
            for layer in spec.candidates
            if layer.name in factors.layers
        )
        assert cost == emission.plan.cost


def test_training_and_inference_describe_one_student() -> None:
    _, spec, sketches, start = prepared()
    given = outputs(len(spec.candidates), seed=5)
    plain = emit(spec, sketches, start, given, Budget(params=0.5))
    masked = emit(spec, sketches, start, given, Budget(params=0.5), training=True)
    assert dict(plain.plan.ranks) == dict(masked.plan.ranks)
    for name, layer in plain.layers.items():
        other = masked.layers[name]
        assert layer.mask is None
        assert other.mask is not None
        torch.testing.assert_close(other.expand * other.mask @ other.reduce, layer.expand @ layer.reduce)
        assert (layer.bias is None) is (other.bias is None)
        if layer.bias is not None and other.bias is not None:
            torch.testing.assert_close(layer.bias, other.bias)


def test_scores_are_energies_bent_by_weight_and_exponent() -> None:
    _, spec, _, start = prepared()
    n = len(spec.candidates)
    for name, score in scores(spec, start, outputs(n)).outputs.items():
        assert torch.equal(score, start.energies[name])
    for name, score in scores(spec, start, outputs(n, weight=0.7, exponent=0.25)).outputs.items():
        energy = start.energies[name]
        relative = (energy / energy.max()).clamp_min(1e-12)
        torch.testing.assert_close(score, energy * relative**0.25 * torch.tensor(0.7).double().exp(), rtol=1e-6, atol=0)


def test_a_gain_is_a_relative_change_of_the_matrix() -> None:
    _, spec, sketches, start = prepared()
    plain, more = (
        emit(spec, sketches, start, outputs(len(spec.candidates), gain=gain), Budget(params=0.5)) for gain in (0.0, 0.2)
    )
    assert more.layers
    for name, layer in more.layers.items():
        torch.testing.assert_close(layer.matrix(), 1.2 * plain.layers[name].matrix())


@pytest.mark.parametrize("index", [0, 1, 2])
def test_rotation_is_the_first_order_change_of_the_metric(index: int) -> None:
    """Mixing a little of the plain-weight metric into the curvature turns the kept directions as `rotated` says."""
    _, spec, _, start = prepared()
    layer = spec.candidates[index]
    curvature = start.curvatures[layer.name]
    metric = replace(Metric(), centred=False, damping=1e-9)
    double = replace(curvature, **{k: getattr(curvature, k).double() for k in ("signal", "fisher", "gram", "mean")})
    frame = weighted_frame(double, metric)
    rank, amount = 3, 1e-4
    left, right = rotated(frame, double.gram, rank, torch.tensor(amount).double(), None)
    side = frame.right if layer.out <= layer.d else frame.left.T
    bare = double.fisher if layer.out <= layer.d else double.signal
    scale = bare.trace() / len(bare)  # frames are made in the metric at unit mean eigenvalue
    share = amount * frame.energy.sum() / (scale * (side @ double.gram * side).sum())
    # The half that `frame_of` sees through W gets the identity mixed in.
    bent = (
        replace(double, signal=double.signal + share * double.gram)
        if layer.out <= layer.d
        else replace(double, fisher=double.fisher + share * double.gram)
    )
    exact = weighted_frame(bent, metric)
    wanted = exact.left[:, :rank] @ exact.right[:rank]
    before = frame.left[:, :rank] @ frame.right[:rank]
    moved = float((wanted - before).norm())
    assert moved > 0
    # `rotated` softens the gaps between directions, so the step is a little shorter than the exact one.
    assert float((left @ right - wanted).norm()) < 0.35 * moved
    still = rotated(frame, double.gram, rank, torch.tensor(0.0).double(), None)
    assert torch.equal(still[0], frame.left[:, :rank])
    assert torch.equal(still[1], frame.right[:rank])


def test_corrections_of_zero_leave_every_bit() -> None:
    _, spec, sketches, start = prepared(data=False)
    zero = {layer.name: torch.zeros(layer.full_rank) for layer in spec.candidates}
    same = corrected(spec, sketches, start, zero)
    for name, frame in start.directions.outputs.items():
        assert torch.equal(frame.left, same.directions.outputs[name].left)
        assert torch.equal(frame.energy, same.directions.outputs[name].energy)
        assert torch.equal(start.curvatures[name].signal, same.curvatures[name].signal)


def test_correction_multiplies_the_bare_diagonal() -> None:
    _, spec, sketches, start = prepared(data=False)
    changes = {layer.name: torch.linspace(-1, 1, layer.full_rank) for layer in spec.candidates}
    bent = corrected(spec, sketches, start, changes)
    for layer in spec.candidates:
        before, after, factor = (
            start.curvatures[layer.name],
            bent.curvatures[layer.name],
            changes[layer.name].double().exp(),
        )
        if layer.out <= layer.d:
            torch.testing.assert_close(after.fisher.diagonal(), before.fisher.diagonal() * factor)
            assert torch.equal(after.signal, before.signal)
        else:
            variance = before.signal.diagonal() - before.mean**2
            torch.testing.assert_close(after.signal.diagonal() - after.mean**2, variance * factor)
            assert torch.equal(after.fisher, before.fisher)


def test_spread_gives_back_the_variance_that_truncation_took() -> None:
    model, spec, sketches, start = prepared()
    name, norm = "3", "4"  # the Linear without a bias, and the BatchNorm behind it
    emission = emit(
        spec, sketches, start, outputs(len(spec.candidates), spread=1.0 - start.base.spread), Budget(params=0.3)
    )
    layer = emission.layers[name]
    matrix = layer.expand @ layer.reduce
    with torch.no_grad():
        x = model[:3](images())
        whole, low = model[3](x), x @ matrix.T
        wanted = model[4](whole).std(0, correction=0)
        deltas = {key: emission.deltas[f"{norm}.{key}"] for key in ("weight", "bias")}
        bn = model[4]
        got = (low - bn.running_mean) / (bn.running_var + bn.eps).sqrt() * (bn.weight + deltas["weight"])
        left = low.std(0, correction=0) / whole.std(0, correction=0)
        ratio = got.std(0, correction=0) / wanted / (2 * left).clamp_max(1)  # at most four times the variance
        mean = (got + bn.bias + deltas["bias"]).mean(0)
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=1e-3)
    assert mean.isfinite().all()
