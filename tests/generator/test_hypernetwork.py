"""The learned generator is the analytic one until it is trained, and keeps every promise after."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypercompress.errors import BudgetError, GeneratorError
from hypercompress.generator import ANALYTIC, Generator, HypernetConfig, HypernetGenerator, Hypernetwork
from hypercompress.generator.emission import emit
from hypercompress.generator.heads import Heads
from hypercompress.generator.hypernetwork import channel_changes, tokens_of
from hypercompress.generator.start import Start, corrected, on_device, start_of
from hypercompress.inspection import inspect
from hypercompress.sketch import sketch
from hypercompress.specs import Budget, Generation, ModelSpec
from hypercompress.student import build_student

BUDGETS = [Budget(params=0.35), Budget(params=0.7), Budget(macs=0.5)]


def images() -> Tensor:
    return torch.randn(24, 3, 8, 8, generator=torch.Generator().manual_seed(0)) + 0.3


def teacher(zero: bool = False) -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3, bias=False),
        nn.BatchNorm2d(24),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 32),
        nn.LayerNorm(32),
        nn.Linear(32, 120),
        nn.GELU(),
        nn.Linear(120, 6),
    )
    for module in (model[1], model[6]):
        module.weight.data.uniform_(0.5, 1.5)
        module.running_var.uniform_(0.5, 2)
        module.bias.data.normal_()
    if zero:
        model[6].weight.data.zero_()
        model[11].weight.data.zero_()
    return model.eval()


def randomised(scale: float = 1.0) -> Hypernetwork:
    network = Hypernetwork(HypernetConfig(width=16, depth=1, heads=2))
    generator = torch.Generator().manual_seed(4)
    for parameter in network.parameters():
        parameter.data += scale * torch.randn(parameter.shape, generator=generator)
    return network


def prepared(data: bool, zero: bool = False) -> tuple[nn.Module, ModelSpec, dict[str, Any]]:
    model = teacher(zero)
    spec = inspect(model, images()[:2])
    return model, spec, sketch(model, spec, [images()] if data else None)


def assert_same(a: Generation, b: Generation) -> None:
    assert dict(a.plan.ranks) == dict(b.plan.ranks)
    assert dict(a.plan.input_ranks) == dict(b.plan.input_ranks)
    assert (a.plan.cost, a.plan.unit, a.plan.achieved) == (b.plan.cost, b.plan.unit, b.plan.achieved)
    if a.plan.predicted_kl is None or b.plan.predicted_kl is None:
        assert a.plan.predicted_kl is b.plan.predicted_kl
    else:
        assert a.plan.predicted_kl == pytest.approx(b.plan.predicted_kl)
    assert set(a.factors.layers) == set(b.factors.layers)
    for name, layer in a.factors.layers.items():
        other = b.factors.layers[name]
        assert torch.equal(layer.expand, other.expand)
        assert torch.equal(layer.reduce, other.reduce)
        assert (layer.project is None) is (other.project is None)
        assert layer.project is None or other.project is None or torch.equal(layer.project, other.project)
        assert (layer.bias is None) is (other.bias is None)
        assert layer.bias is None or other.bias is None or torch.equal(layer.bias, other.bias)
    assert set(a.factors.deltas) == set(b.factors.deltas)
    assert all(torch.equal(delta, b.factors.deltas[name]) for name, delta in a.factors.deltas.items())


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("data", [True, False], ids=["data", "no data"])
def test_untrained_network_is_the_analytic_generator_bit_for_bit(data: bool, budget: Budget) -> None:
    _, spec, sketches = prepared(data)
    analytic = ANALYTIC["kfac" if data else "prior"].generate(spec, sketches, budget)
    assert_same(HypernetGenerator(Hypernetwork()).generate(spec, sketches, budget), analytic)


@pytest.mark.parametrize("data", [True, False], ids=["data", "no data"])
def test_budgets_of_these_tests_factor_some_layers_on_both_sides(data: bool) -> None:
    _, spec, sketches = prepared(data)
    plans = [ANALYTIC["kfac" if data else "prior"].generate(spec, sketches, budget).plan for budget in BUDGETS]
    assert any(plan.input_ranks for plan in plans)
    assert any(set(plan.ranks) - set(plan.input_ranks) for plan in plans)


@pytest.mark.parametrize("budget", BUDGETS, ids=str)
@pytest.mark.parametrize("data", [True, False], ids=["data", "no data"])
def test_strength_zero_is_the_analytic_generator_whatever_the_weights(data: bool, budget: Budget) -> None:
    _, spec, sketches = prepared(data)
    analytic = ANALYTIC["kfac" if data else "prior"].generate(spec, sketches, budget)
    generator = HypernetGenerator(randomised(), strength=0.0)
    assert_same(generator.generate(spec, sketches, budget), analytic)
    strengths = generator.options(spec, sketches, budget, (0.0, 1.0))
    assert_same(strengths[0], analytic)
    assert [option.strength for option in strengths] == [0.0, 1.0]
    names = analytic.factors.layers.keys() & strengths[1].factors.layers.keys()
    first = min(names)
    ours, theirs = strengths[1].factors.layers[first], analytic.factors.layers[first]
    assert ours.expand.shape != theirs.expand.shape or not torch.equal(ours.expand, theirs.expand)


@pytest.mark.parametrize("zero", [False, True], ids=["ordinary", "degenerate"])
@pytest.mark.parametrize("data", [True, False], ids=["data", "no data"])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_budget_is_met_and_all_is_finite_whatever_the_weights(data: bool, scale: float, zero: bool) -> None:
    model, spec, sketches = prepared(data, zero)
    for budget in BUDGETS:
        generation = HypernetGenerator(randomised(scale)).generate(spec, sketches, budget)
        student = build_student(model, spec, generation)
        params = sum(p.numel() for p in student.parameters())
        assert generation.plan.achieved <= budget.share
        assert budget.params is None or params <= budget.params * spec.params
        assert all(parameter.isfinite().all() for parameter in student.parameters())
        with torch.no_grad():
            assert student(images()).isfinite().all()


def test_budget_out_of_reach_is_refused() -> None:
    _, spec, sketches = prepared(data=True)
    with pytest.raises(BudgetError):
        HypernetGenerator(Hypernetwork()).generate(spec, sketches, Budget(params=0.01))


def test_model_without_candidates_needs_no_network() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4))
    spec = inspect(model, torch.randn(2, 4, 5, 5))
    generation = HypernetGenerator(Hypernetwork()).generate(spec, {}, Budget(params=1.0))
    assert dict(generation.plan.ranks) == {}


def test_every_head_reaches_the_student() -> None:
    """Each output alone changes the student; none is dead."""
    _, spec, sketches = prepared(data=True)
    budgets = [Budget(params=share) for share in (0.25, 0.35, 0.5, 0.7)]
    analytic = [ANALYTIC["kfac"].generate(spec, sketches, budget) for budget in budgets]
    unchanged = []
    for head in range(5):
        network = Hypernetwork()
        network.heads.layer.bias.data[head] = 1.0
        if head < 2:  # what all layers share changes nothing, so let it differ between the first and the last
            start = start_of(spec, sketches)
            with torch.no_grad():
                states, _ = network.encoder(tokens_of(spec, sketches, start, BUDGETS[0]))
            network.heads.layer.bias.data[head] = 0.0
            network.heads.layer.weight.data[head] = 10 * (states[0] - states[-1])
        got = [HypernetGenerator(network).generate(spec, sketches, budget) for budget in budgets]
        try:
            for ours, theirs in zip(got, analytic, strict=True):
                assert_same(ours, theirs)
        except AssertionError:
            continue
        unchanged.append(head)
    assert unchanged == []


def test_gradients_reach_every_parameter_of_the_network() -> None:
    _, spec, sketches = prepared(data=False)
    network, start = randomised(0.1), start_of(spec, sketches)
    outputs = network(tokens_of(spec, sketches, start, BUDGETS[0]), False)
    changes = channel_changes(network, spec, sketches, start, outputs)
    values = [outputs.weight, outputs.exponent, outputs.shift, outputs.spread, outputs.rotation, outputs.gain.sum(1)]
    (sum(value.square().sum() for value in values) + sum(c.square().sum() for c in changes.values())).backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


@pytest.mark.parametrize("measured", [True, False])
def test_outputs_are_bounded(measured: bool) -> None:
    config = HypernetConfig(width=16, depth=1, heads=2)
    heads = Heads(config)
    for parameter in heads.parameters():
        parameter.data.normal_(0, 100)
    outputs = heads(torch.randn(9, 16), torch.randn(9, 8, 16), measured)
    bound = config.weight_bound if measured else config.free_weight_bound
    limits = {"weight": bound, "exponent": 0.5, "shift": 1, "spread": 1, "rotation": 0.1, "gain": 0.5}
    for name, limit in limits.items():
        assert float(getattr(outputs, name).detach().abs().max()) == pytest.approx(limit, rel=1e-6)
    assert heads.channels(torch.randn(30, 5), torch.randn(16)).abs().max() <= config.curvature_bound
    half = outputs.scaled(0.5)
    torch.testing.assert_close(half.gain, outputs.gain / 2)
    assert torch.equal(half.states, outputs.states)


def test_config_must_fit_together() -> None:
    with pytest.raises(GeneratorError, match="width=30, depth=3, heads=4; expected positive numbers and a width that"):
        HypernetConfig(width=30)
    for size in ("depth", "heads"):
        with pytest.raises(GeneratorError, match=f"{size}=0"):
            HypernetConfig(**{size: 0})
    with pytest.raises(GeneratorError, match=r"received weight_bound=-3, gain_bound=nan; expected bounds of 0 or more"):
        HypernetConfig(weight_bound=-3.0, gain_bound=float("nan"))


def test_half_the_strength_without_data_is_half_of_every_correction() -> None:
    _, spec, sketches = prepared(data=False)
    generator, budget = HypernetGenerator(randomised(0.1)), BUDGETS[0]
    (ours,) = generator.options(spec, sketches, budget, (0.5,))
    start = start_of(spec, sketches)
    with torch.no_grad():
        outputs = generator.network(tokens_of(spec, sketches, start, budget), False)
        changes = channel_changes(generator.network, spec, sketches, start, outputs)
        bent = corrected(spec, sketches, start, {name: 0.5 * change for name, change in changes.items()})
        emission = emit(spec, sketches, bent, outputs.scaled(0.5), budget)
    assert_same(ours, Generation(emission.factors(), emission.plan, ours.generator, 0.5))


def test_generators_share_one_interface() -> None:
    assert all(isinstance(generator, Generator) for generator in ANALYTIC.values())
    assert isinstance(HypernetGenerator(Hypernetwork()), Generator)


def test_start_moves_as_a_whole() -> None:
    _, spec, sketches = prepared(data=True)
    start = on_device(start_of(spec, sketches), torch.device("cpu"), torch.float32)
    for name, frame in start.directions.outputs.items():
        assert frame.left.dtype is frame.right.dtype is start.curvatures[name].gram.dtype is torch.float32
        assert frame.energy.dtype is start.energies[name].dtype is torch.float64


def test_directions_of_a_teacher_with_data_are_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The guard asks for its strengths twice."""
    found: list[bool] = []

    def counted(*args: Any) -> Start:
        found.append(True)
        return start_of(*args)

    monkeypatch.setattr("hypercompress.generator.hypernetwork.start_of", counted)
    generator = HypernetGenerator(randomised(0.1))
    torch.manual_seed(0)
    _, spec, sketches = prepared(data=True)
    first = generator.options(spec, sketches, BUDGETS[0], (1.0,))[0]
    assert_same(generator.options(spec, sketches, BUDGETS[0], (0.0, 1.0))[1], first)
    assert len(found) == 1
    torch.manual_seed(0)
    _, other, others = prepared(data=True)
    assert_same(generator.options(other, others, BUDGETS[0], (1.0,))[0], first)
    assert len(found) == 2


@pytest.mark.parametrize("strengths", [(0.5, 1.0), (0.0, 1.0)])
def test_without_data_directions_that_nobody_reads_are_let_go(strengths: tuple[float, ...]) -> None:
    _, spec, sketches = prepared(data=False)
    generator = HypernetGenerator(randomised(0.1))
    together = generator.options(spec, sketches, BUDGETS[0], strengths)
    for strength, ours in zip(strengths, together, strict=True):
        assert_same(ours, generator.options(spec, sketches, BUDGETS[0], (strength,))[0])
