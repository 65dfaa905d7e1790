"""Ranks for a budget: met from below, as good as every other choice up to the last step."""

import itertools
from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hypercompress.allocation import allocate, pareto, predicted_kl
from hypercompress.errors import BudgetError
from hypercompress.generator import ANALYTIC
from hypercompress.inspection import inspect
from hypercompress.menus import Form, lower_hull
from hypercompress.sketch import sketch
from hypercompress.specs import COUNTED, Budget, LayerSpec, ModelSpec, RankPlan, Unit
from hypercompress.student import build_student
from tests.allocated import layer, model_of


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
@given(problems(), st.floats(0.01, 1), st.sampled_from(list(COUNTED)))
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
@given(problems(), st.sampled_from(list(COUNTED)))
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
    for unit in COUNTED:
        for point in pareto(spec, energies, unit)[::6_000]:
            plan = allocate(spec, energies, budget_of(unit, point.share), nats=True)
            assert plan.achieved == point.share


@settings(max_examples=60)
@given(problems(largest=7, count=3), st.floats(0.05, 1), st.sampled_from(list(COUNTED)))
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


@pytest.mark.parametrize("unit", list(COUNTED))
@pytest.mark.parametrize("stride", [1, 2])
def test_both_sides_are_chosen_where_they_lose_less(unit: Unit, stride: int) -> None:
    """Every form of two kernels against the plan, at many budgets."""
    size = {"positions": 16, "input_positions": 16 * stride**2, "taps": 9}
    spec = model_of([replace(layer("a", 6, 45), **size), replace(layer("b", 5, 36), **size)], 10)
    generator = torch.Generator().manual_seed(1)

    def falling(count: int, power: float) -> Tensor:
        noise = torch.rand(count, generator=generator, dtype=torch.float64)
        return (noise * torch.arange(1.0, count + 1) ** -power).sort(descending=True).values

    energies, inputs = {"a": falling(6, 1), "b": falling(5, 2)}, {"a": falling(5, 3), "b": falling(4, 1)}
    forms = []
    for item in spec.candidates:
        sides = [(r, q) for r in range(1, item.full_rank + 1) for q in [*range(1, item.channels + 1), None]]
        known = [(item.dense_cost(unit), 0.0, None)]
        for r, q in sides:
            per = {u: hand_cost(item, u, r, q) for u in COUNTED}
            assert per[unit] == item.cost(unit, r, q)
            if q is not None:
                assert item.cost(unit, r + 1, q) - per[unit] == item.step(unit, q)
                assert item.cost(unit, r, q + 1) - per[unit] == item.input_step(unit, r)
            if all(per[u] < item.dense_cost(u) for u in COUNTED):
                lost = float(energies[item.name][r:].sum()) + (0 if q is None else float(inputs[item.name][q:].sum()))
                known.append((per[unit], lost, (r, q)))
        forms.append(known)
    fixed = spec.total(unit) - sum(item.dense_cost(unit) for item in spec.candidates)
    points, seen = pareto(spec, energies, unit, inputs), set()
    for share in [points[0].share + (1 - points[0].share) * i / 39 for i in range(40)]:
        room = share * spec.total(unit) + 1e-3
        best = min(x[1] + y[1] for x, y in itertools.product(*forms) if fixed + x[0] + y[0] <= room) / 2
        plan = allocate(spec, energies, budget_of(unit, min(share + 1e-9, 1.0)), nats=True, inputs=inputs)
        assert plan.cost <= room
        assert plan.predicted_kl == pytest.approx(predicted_kl(spec, energies, plan, inputs), abs=1e-12)
        assert plan.predicted_kl >= best * (1 - 1e-9) - 1e-12
        below = [point for point in points if point.share <= share + 1e-9]
        assert plan.predicted_kl <= below[-1].predicted_kl + 1e-12
        seen |= {(n in plan.ranks, n in plan.input_ranks) for n in ("a", "b")}
    assert {(True, True), (False, False)} <= seen
    alone = allocate(spec, energies, budget_of(unit, 0.5), nats=True)
    assert not alone.input_ranks
    both = allocate(spec, energies, budget_of(unit, 0.5), nats=True, inputs=inputs)
    assert both.predicted_kl < alone.predicted_kl


def hand_cost(item: LayerSpec, unit: Unit, r: int, q: int | None) -> int:
    before, after = (1, 1) if unit is Unit.PARAMS else (item.input_positions, item.positions)
    if q is None:
        return after * r * (item.d + item.out)
    return before * q * (item.d // item.taps) + after * (q * item.taps * r + r * item.out)


def test_scale_of_all_energies_changes_no_rank() -> None:
    spec = model_of([layer("a", 12, 20), layer("b", 30, 9)])
    energies = {item.name: torch.rand(item.full_rank).double().sort(descending=True).values for item in spec.candidates}
    ours = allocate(spec, energies, Budget(params=0.6), nats=True)
    theirs = allocate(spec, {n: 7 * e for n, e in energies.items()}, Budget(params=0.6), nats=False)
    assert ours.ranks == theirs.ranks
    assert theirs.predicted_kl is None


@pytest.mark.parametrize("unit", list(COUNTED))
@pytest.mark.parametrize("share", [None, 0.3, 0.55, 0.9])
def test_predicted_cost_is_that_of_the_student(unit: Unit, share: float | None) -> None:
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
    if share is None:  # the least that can be had, where both sides of the kernels are factored
        flat = {item.name: torch.ones(item.full_rank) for item in spec.candidates}
        inputs = {item.name: torch.ones(item.channels) for item in spec.candidates if item.projects}
        share = pareto(spec, flat, unit, inputs)[0].share
        assert set(inputs) == {"0", "4"}
    generation = ANALYTIC["svd"].generate(spec, sketches, budget_of(unit, share))
    plan = generation.plan
    assert plan.input_ranks or share >= 0.3
    student = build_student(teacher, spec, generation)
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


def test_the_hull_keeps_what_lies_below_its_neighbours() -> None:
    points = [(Form(cost), cost, loss) for cost, loss in ((1, 5.0), (2, 3.0), (3, 2.9), (4, 1.0), (8, 0.0))]
    assert [cost for _, cost, _ in lower_hull(points)] == [1, 2, 4, 8]  # (3, 2.9) lies above the line from 2 to 4
