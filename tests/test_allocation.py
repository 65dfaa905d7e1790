"""Ranks for a budget: met from below, as good as every other choice up to the last step."""

import itertools
import re
from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hypercompress.allocation import allocate, pareto, predicted_kl
from hypercompress.errors import BudgetError
from hypercompress.factorize import plain_frame
from hypercompress.inspection import inspect
from hypercompress.sketch import sketch
from hypercompress.specs import Budget, Factors, Generation, LayerSpec, ModelSpec, RankPlan, Status, Unit
from hypercompress.student import build_student


def layer(name: str, out: int, d: int, positions: int = 1) -> LayerSpec:
    return LayerSpec(name, "linear", Status.FACTORED, "", out, d, positions, out * d, 0, False)


def model_of(layers: list[LayerSpec], fixed: int = 0) -> ModelSpec:
    return ModelSpec(
        tuple(layers),
        sum(item.dense_params for item in layers) + fixed,
        sum(item.dense_macs for item in layers) + fixed,
        (),
    )


def budget_of(unit: Unit, share: float) -> Budget:
    return Budget(params=share) if unit is Unit.PARAMS else Budget(macs=share)


Problem = tuple[list[tuple[int, int, int, str, int, int]], int]


def problems(largest: int = 24, count: int = 5) -> st.SearchStrategy[Problem]:
    """Layers as (out, d, positions, shape of the spectrum, seed, order of magnitude), and the fixed cost."""
    kinds = st.sampled_from(["random", "equal", "steep", "zero"])
    sizes = st.integers(3, largest)
    one = st.tuples(sizes, sizes, st.integers(1, 50), kinds, st.integers(0, 1000), st.integers(-6, 6))
    return st.tuples(
        st.lists(one.filter(lambda i: i[0] * i[1] > i[0] + i[1]), min_size=1, max_size=count), st.integers(0, 500)
    )


def made(problem: Problem) -> tuple[ModelSpec, dict[str, Tensor]]:
    """The model and its energies. Not inside the strategy: beartype draws random numbers, hypothesis forbids them."""
    layers, energies = [], {}
    for index, (out, d, positions, kind, seed, order) in enumerate(problem[0]):
        item = layer(f"l{index}", out, d, positions)
        values = torch.rand(item.full_rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        if kind == "equal":
            values = torch.full_like(values, 0.1)
        if kind == "steep":
            values = 10.0 ** -torch.arange(item.full_rank, dtype=torch.float64)
        if kind == "zero":
            values[len(values) // 2 :] = 0
        energies[item.name] = values.sort(descending=True).values * 10.0**order
        layers.append(item)
    return model_of(layers, problem[1]), energies


def cost_of(spec: ModelSpec, ranks: dict[str, int | None], unit: Unit) -> int:
    """Independent count."""
    total = spec.params if unit is Unit.PARAMS else spec.macs
    for item in spec.candidates:
        times = 1 if unit is Unit.PARAMS else item.positions
        rank = ranks.get(item.name)
        if rank is not None:
            total += times * (rank * (item.out + item.d) - item.out * item.d)
    return total


@settings(max_examples=150)
@given(problems(), st.floats(0.01, 1), st.sampled_from(list(Unit)))
def test_budget_is_met_from_below_within_one_rank(problem: Problem, share: float, unit: Unit) -> None:
    spec, energies = made(problem)
    total = spec.total(unit)
    least = cost_of(spec, {item.name: 1 for item in spec.candidates}, unit)
    if least > share * total:
        with pytest.raises(BudgetError, match="rank 1 in each is the least"):
            allocate(spec, energies, budget_of(unit, share), nats=True)
        return
    plan = allocate(spec, energies, budget_of(unit, share), nats=True)
    assert plan.cost == cost_of(spec, dict(plan.ranks), unit) <= share * total + 1e-3
    assert plan.achieved == plan.cost / total
    assert all(1 <= plan.ranks[item.name] <= item.max_rank for item in spec.candidates if item.name in plan.ranks)
    factored = [item.rank_cost(unit) for item in spec.candidates if item.name in plan.ranks]
    assert not factored or share * total - plan.cost < min(factored) + 1e-3
    assert plan.predicted_kl == pytest.approx(predicted_kl(spec, energies, plan), rel=1e-6, abs=1e-12)


@settings(max_examples=80)
@given(problems(), st.sampled_from(list(Unit)))
def test_a_larger_budget_never_predicts_more_loss_than_pareto_allows(problem: Problem, unit: Unit) -> None:
    spec, energies = made(problem)
    points = pareto(spec, energies, unit)
    shares = [point.share for point in points]
    losses = [point.predicted_kl for point in points]
    assert shares == sorted(shares)
    assert losses == sorted(losses, reverse=True)
    assert points[-1].share == 1
    assert points[-1].predicted_kl == pytest.approx(0, abs=1e-9 * max(losses[0], 1e-9))
    plan = allocate(spec, energies, budget_of(unit, shares[0]), nats=True)
    assert dict(plan.ranks) == {item.name: 1 for item in spec.candidates}
    for point in points[:: max(1, len(points) // 8)]:
        plan = allocate(spec, energies, budget_of(unit, min(point.share, 1.0)), nats=True)
        assert plan.predicted_kl is not None
        assert plan.achieved == pytest.approx(point.share, rel=1e-12)
        assert plan.predicted_kl == pytest.approx(point.predicted_kl, rel=1e-6, abs=1e-9 * losses[0])


def test_corners_are_met_exactly_however_large_the_model() -> None:
    spec = model_of([layer(f"l{i}", 4096 + i, 11_008 + 7 * i, 1013 + i) for i in range(8)], 999_983)
    energies = {item.name: torch.rand(item.full_rank).double().sort(descending=True).values for item in spec.candidates}
    for unit in Unit:
        for point in pareto(spec, energies, unit)[::6_000]:
            plan = allocate(spec, energies, budget_of(unit, point.share), nats=True)
            assert plan.achieved == point.share


@settings(max_examples=60)
@given(problems(largest=7, count=3), st.floats(0.05, 1), st.sampled_from(list(Unit)))
def test_greedy_is_the_best_of_all_up_to_the_last_step(problem: Problem, share: float, unit: Unit) -> None:
    spec, energies = made(problem)
    choices = [[*range(1, item.max_rank + 1), None] for item in spec.candidates]
    room = share * spec.total(unit) + 1e-3
    losses = {}
    for ranks in itertools.product(*choices):
        chosen = {item.name: rank for item, rank in zip(spec.candidates, ranks, strict=True)}
        if cost_of(spec, chosen, unit) <= room:
            kept = {name: rank for name, rank in chosen.items() if rank is not None}
            losses[ranks] = sum(float(energies[name][rank:].sum()) for name, rank in kept.items()) / 2
    assume(losses)
    plan = allocate(spec, energies, budget_of(unit, share), nats=True)
    best = min(losses.values())
    assert plan.predicted_kl is not None
    assert plan.predicted_kl >= best * (1 - 1e-9) - 1e-12
    # The lower convex hull bounds every choice from below; greedy leaves it by one segment at most.
    points = pareto(spec, energies, unit)
    below = [point for point in points if point.share * spec.total(unit) <= room]
    assert plan.predicted_kl <= below[-1].predicted_kl * (1 + 1e-9) + 1e-9 * points[0].predicted_kl
    if len(below) < len(points):
        (a, b), wide = (below[-1], points[len(below)]), points[len(below)].share - below[-1].share
        at = (min(share, b.share) - a.share) / wide
        hull = a.predicted_kl + at * (b.predicted_kl - a.predicted_kl)
        assert best >= hull - 1e-9 * points[0].predicted_kl


def test_scale_of_all_energies_changes_no_rank() -> None:
    spec = model_of([layer("a", 12, 20), layer("b", 30, 9)])
    energies = {item.name: torch.rand(item.full_rank).double().sort(descending=True).values for item in spec.candidates}
    ours = allocate(spec, energies, Budget(params=0.6), nats=True)
    theirs = allocate(spec, {n: 7 * e for n, e in energies.items()}, Budget(params=0.6), nats=False)
    assert ours.ranks == theirs.ranks
    assert theirs.predicted_kl is None


def test_unreachable_budget_names_the_range_and_its_least_succeeds() -> None:
    spec = model_of([layer("a", 12, 20), layer("b", 30, 9)], 57)
    energies = {item.name: torch.ones(item.full_rank).double() for item in spec.candidates}
    with pytest.raises(BudgetError) as caught:
        allocate(spec, energies, Budget(params=0.05), nats=True)
    found = re.search(r"received a params budget of 0\.05; expected between ([\d.]+) and 1", str(caught.value))
    assert found
    least = float(found[1])
    assert allocate(spec, energies, Budget(params=least), nats=True).ranks == {"a": 1, "b": 1}
    with pytest.raises(BudgetError):
        allocate(spec, energies, Budget(params=least - 1e-4), nats=True)


def test_everything_stays_dense_at_a_budget_of_one() -> None:
    spec = model_of([layer("a", 12, 20), layer("b", 30, 9)], 57)
    energies = {item.name: torch.zeros(item.full_rank).double() for item in spec.candidates}
    plan = allocate(spec, energies, Budget(macs=1.0), nats=True)
    assert (dict(plan.ranks), plan.cost, plan.achieved) == ({}, spec.macs, 1.0)


def test_model_without_candidates_fits_a_budget_of_one_alone() -> None:
    spec = ModelSpec((), 10, 10, ())
    assert allocate(spec, {}, Budget(params=1.0), nats=True).cost == 10
    with pytest.raises(BudgetError, match=r"expected between 1\.0000 and 1 for this model"):
        allocate(spec, {}, Budget(params=0.99), nats=True)


@pytest.mark.parametrize("unit", list(Unit))
@pytest.mark.parametrize("share", [0.3, 0.55, 0.9])
def test_predicted_cost_is_that_of_the_student(unit: Unit, share: float) -> None:
    teacher = nn.Sequential(
        nn.Conv2d(3, 24, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 24, 3, padding=1, groups=4),
        nn.Conv2d(24, 48, (3, 1), padding="same", padding_mode="reflect"),
        nn.Flatten(),
        nn.Linear(48 * 30, 17),
    )
    x = torch.randn(2, 3, 11, 9)
    spec = inspect(teacher, x)
    sketches = sketch(teacher, spec, None)
    frames = {item.name: plain_frame(sketches[item.name].weight, item.side) for item in spec.candidates}
    plan = allocate(spec, {name: frame.energy for name, frame in frames.items()}, budget_of(unit, share), nats=False)
    factors = {name: frames[name].factors(sketches[name].weight, rank) for name, rank in plan.ranks.items()}
    student = build_student(teacher, spec, Generation(Factors(factors, {}), plan, "test", 0.0))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        student(x)
    params, macs = sum(p.numel() for p in student.parameters()), counter.get_total_flops() // 2 // len(x)
    assert plan.cost == (params if unit is Unit.PARAMS else macs)
    assert plan.achieved <= share


def test_prediction_for_given_ranks_counts_what_is_dropped() -> None:
    spec = model_of([layer("a", 3, 9), layer("b", 4, 9)])
    energies = {"a": torch.tensor([4.0, 2.0, 1.0]), "b": torch.tensor([8.0, 4.0, 2.0, 1.0])}
    plan = RankPlan({"a": 1}, Unit.PARAMS, 0, 0.0, None)
    assert predicted_kl(spec, energies, plan) == 1.5
    assert predicted_kl(spec, energies, replace(plan, ranks={"a": 2, "b": 1})) == 0.5 + 3.5
    inputs = {"b": torch.tensor([2.0, 1.0, 0.5])}
    both = replace(plan, ranks={"a": 2, "b": 1}, input_ranks={"b": 1})
    assert predicted_kl(spec, energies, both, inputs) == 0.5 + 3.5 + 0.75


def test_plans_are_data() -> None:
    plan = RankPlan({"a": 1}, Unit.PARAMS, 3, 0.5, None)
    with pytest.raises(AttributeError, match="cannot assign"):
        plan.cost = 4  # type: ignore[misc]
