"""Times as data: which forms they allow, that they are kept, and that a student meets its target as measured."""

import json
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypercompress import Budget, compress, latency, targeting
from hypercompress.allocation import allocate, least_share
from hypercompress.errors import BudgetError
from hypercompress.generator import ANALYTIC, HypernetGenerator, Hypernetwork
from hypercompress.inspection import inspect
from hypercompress.running.timing import Timing
from hypercompress.specs import COUNTED, Measured, Unit
from hypercompress.student import build_student
from tests.timeless import images, network, ratio, timed

REAL_INSIDE = latency._inside  # what `machine` puts another in the place of


def test_only_forms_that_were_found_faster_are_offered(machine: Path) -> None:
    _, spec, _ = timed(machine)
    for layer in spec.candidates:
        assert layer.measured is not None
        assert layer.measured.dense == layer.dense_macs
        for rank, inner, time in layer.measured.forms:
            assert time < latency.MARGIN * layer.dense_macs
            assert time == pytest.approx(ratio(layer, rank, inner) * layer.dense_macs, abs=1)
            assert layer.cost(Unit.LATENCY, rank, inner or None) == time
            assert all(layer.cost(unit, rank, inner or None) < layer.dense_cost(unit) for unit in COUNTED)
    assert any(inner for layer in spec.candidates for _, inner, _ in layer.measured.forms)
    assert spec.latency == round(1.25 * sum(layer.dense_macs for layer in spec.candidates))


@pytest.mark.parametrize("share", [0.35, 0.6, 0.85, 1.0])
def test_plan_is_made_of_measured_forms_and_costs_what_they_take(machine: Path, share: float) -> None:
    model, spec, sketches = timed(machine)
    for generator in (ANALYTIC["kfac"], ANALYTIC["svd"], HypernetGenerator(Hypernetwork())):
        generation = generator.generate(spec, sketches, Budget(latency=share))
        plan, total = generation.plan, spec.latency
        for layer in spec.candidates:
            total -= layer.dense_macs
            form = (plan.ranks.get(layer.name), plan.input_ranks.get(layer.name))
            total += layer.dense_macs if form[0] is None else layer.cost(Unit.LATENCY, form[0], form[1])
        assert plan.cost == total <= share * spec.latency
        assert plan.achieved == total / spec.latency
        build_student(model, spec, generation)


def test_a_layer_without_a_faster_form_stays_dense_and_the_least_share_is_named(machine: Path) -> None:
    _, spec, sketches = timed(machine)
    slow = spec.candidates[1]
    stuck = replace(slow, measured=Measured(slow.dense_macs, ()))
    spec = replace(spec, layers=tuple(stuck if layer is slow else layer for layer in spec.layers))
    least = least_share(spec, Unit.LATENCY)
    assert slow.dense_macs / spec.latency < least < 1
    plan = ANALYTIC["kfac"].generate(spec, sketches, Budget(latency=least + 1e-6)).plan
    assert slow.name not in plan.ranks
    assert set(plan.ranks) == {layer.name for layer in spec.candidates if layer.measured and layer.measured.forms}
    with pytest.raises(BudgetError, match="fastest form that was measured in each is the least"):
        ANALYTIC["kfac"].generate(spec, sketches, Budget(latency=least - 0.01))


@pytest.mark.parametrize("budget", [Budget(params=0.6), Budget(macs=0.5)])
def test_of_a_timed_model_a_counted_budget_takes_forms_that_were_faster(machine: Path, budget: Budget) -> None:
    model, spec, sketches = timed(machine)
    slow = spec.candidates[0]
    stuck = replace(slow, measured=Measured(slow.dense_macs, ()))
    spec = replace(spec, layers=tuple(stuck if layer is slow else layer for layer in spec.layers))
    for generator in (ANALYTIC["kfac"], HypernetGenerator(Hypernetwork())):
        generation = generator.generate(spec, sketches, budget)
        plan = generation.plan
        assert plan.achieved <= budget.share
        assert plan.ranks
        assert slow.name not in plan.ranks
        for layer in spec.candidates:
            if layer.name in plan.ranks:
                assert layer.measured is not None
                form = (plan.ranks[layer.name], plan.input_ranks.get(layer.name, 0))
                assert form in {(r, q) for r, q, _ in layer.measured.forms}
        build_student(model, spec, generation)
    with pytest.raises(BudgetError, match="smallest form that was measured in each is the least"):
        ANALYTIC["kfac"].generate(spec, sketches, replace(budget, **{str(budget.unit): 0.01}))


def test_fast_reports_its_time_and_what_stays_dense(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targeting, "times_of", lambda *_: (2.0, 1.1))
    student = compress(network(), Budget(macs=0.5), [images(16)] * 3, "kfac", fast=True, latency_batch=2)
    assert student.report["budget"]["achieved"] <= 0.5
    assert student.report["latency"]["student_ms"] == 1.1
    assert student.report["latency"]["batch_size"] == 2
    dense = [row for row in student.report["layers"] if row["status"] == "kept" and row["reason"].startswith("no form")]
    kept = {layer.name for layer in timed(machine)[1].candidates if layer.measured and not layer.measured.forms}
    assert {row["name"] for row in dense} == kept
    assert "latency" not in compress(network(), Budget(macs=0.5), [images(16)] * 3, "kfac").report


def test_a_latency_budget_needs_times() -> None:
    model = network()
    spec = inspect(model, images())
    energies = {layer.name: torch.ones(layer.full_rank) for layer in spec.candidates}
    with pytest.raises(BudgetError, match="which was not measured"):
        allocate(spec, energies, Budget(latency=0.5), nats=False)


def test_ratios_are_kept_for_the_next_time(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, spec, _ = timed(machine)
    kept = json.loads(machine.read_text())
    assert kept

    def refuse(*_: Any) -> None:
        raise AssertionError("measured again")

    measure = latency._ratios
    monkeypatch.setattr(latency, "_ratios", refuse)
    assert timed(machine)[1] == spec
    for broken in ("{", '{"a": [[1, 2]]}', "[]"):
        machine.write_text(broken)
        with pytest.raises(AssertionError, match="measured again"):
            timed(machine)
    monkeypatch.setattr(latency, "_ratios", measure)
    assert timed(machine)[1] == spec
    assert json.loads(machine.read_text()) == kept
    assert [path.name for path in machine.parent.iterdir()] == ["latency.json"]


def test_a_cache_that_cannot_be_written_costs_only_time(machine: Path) -> None:
    machine.parent.write_text("a file where the folder should be")
    assert timed(machine)[1].latency > 0


def test_real_times_are_positive_and_inside_the_whole() -> None:
    """No claim about speed: only that what is measured can be used."""
    model = network()
    spec = inspect(model, images())
    total, times, inputs = latency._inside(model, spec, lambda: model(images(2)), lambda: None)
    assert set(times) == set(inputs) == {layer.name for layer in spec.candidates}
    assert total > 0
    assert all(time > 0 for time in times.values())
    assert all(len(x) == 2 for x in inputs.values())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    layer = spec.candidates[1]
    found = latency._ratios(layer, model.get_submodule(layer.name), inputs[layer.name], lambda: None)
    assert [(r, q) for r, q, _ in found] == list(latency._forms(layer))
    assert all(share > 0 for _, _, share in found)


class Twice(nn.Module):
    """A layer that runs once in a pass, and one that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.once, self.twice = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.twice(self.twice(self.once(x)))
        return y


def test_times_are_nanoseconds_and_the_calls_of_one_pass_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ticks = Twice(), count()
    spec = inspect(model, torch.randn(2, 8))
    monkeypatch.setattr("hypercompress.latency.time.perf_counter", lambda: float(next(ticks)))  # a second a look
    monkeypatch.setattr(latency, "interleaved", lambda *_, **__: [Timing((3.0, 2.0))])  # milliseconds
    total, times, _ = latency._inside(model, spec, lambda: model(torch.randn(2, 8)), lambda: None)
    assert total == pytest.approx(2e6)
    assert times == pytest.approx({"once": 1e9, "twice": 2e9})


class Routed(nn.Module):
    """An expert that a single image does not reach, and a layer that is called by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.expert, self.last = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(input=x.flatten(1)).relu()
        x = self.expert(x) if len(x) > 1 else x
        out: Tensor = self.last(x)
        return out


@pytest.mark.parametrize(("budget", "fast"), [(Budget(latency=0.8), False), (Budget(params=0.8), True)])
def test_a_layer_that_does_not_run_stays_dense(
    budget: Budget, fast: bool, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inside = Routed(), latency._inside
    many, one = torch.randn(4, 1, 8, 8), torch.randn(1, 1, 8, 8)
    _, times, inputs = REAL_INSIDE(model, inspect(model, many), lambda: model(one), lambda: None)
    assert set(times) == set(inputs) == {"first", "last"}

    def unreached(*args: Any) -> tuple[float, dict[str, float], dict[str, Tensor]]:
        total, times, inputs = inside(*args)
        return total - times.pop("expert"), times, inputs

    monkeypatch.setattr(latency, "_inside", unreached)
    monkeypatch.setattr(targeting, "times_of", lambda *_: (1.0, 0.8))
    torch.manual_seed(0)
    student = compress(Routed(), budget, [torch.randn(32, 1, 8, 8)], "kfac", fast=fast)
    assert student.ranks
    assert "expert" not in student.ranks
    row = next(row for row in student.report["layers"] if row["name"] == "expert")
    assert (row["status"], row["reason"]) == ("kept", "does not run in the batch that was timed")


class Quiet(nn.Linear):
    """Does not print its sizes."""

    def extra_repr(self) -> str:
        return ""


def test_layers_that_print_alike_are_not_taken_for_one_another() -> None:
    assert len({latency._key(Quiet(8, outputs), torch.randn(2, 8)) for outputs in (4, 4, 5)}) == 2


def test_other_numbers_and_other_threads_are_timed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    dense, x = nn.Linear(8, 4), torch.randn(2, 8)
    keys = [latency._key(dense, x), latency._key(dense, x.double()), latency._key(dense, x[:1])]
    monkeypatch.setattr("hypercompress.latency.torch.get_num_threads", lambda: 77)
    assert len({*keys, latency._key(dense, x)}) == 4


def test_forms_that_a_layer_does_not_have_are_not_read_from_a_cache(machine: Path) -> None:
    spec = timed(machine)[1]
    found = {
        key: [*rows, [1000, 0, 0.1], [8, 1000, 0.1], [0, 0, 0.1], [8, -1, 0.1]]
        for key, rows in json.loads(machine.read_text()).items()
    }
    machine.write_text(json.dumps(found))
    assert timed(machine)[1] == spec


@pytest.mark.parametrize("text", ['{"a": [[Infinity, 0, 1]]}', "[" * 100_000, "{", '{"a": 1}', "[]"])
def test_a_cache_that_cannot_be_read_is_as_good_as_none(machine: Path, text: str) -> None:
    spec = timed(machine)[1]
    machine.write_text(text)
    assert timed(machine)[1] == spec
