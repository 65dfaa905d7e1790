"""Budgets at the ends: what cannot be reached is refused with the range, and a budget of one leaves all dense."""

import re
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from hypercompress.allocation import allocate, pareto
from hypercompress.errors import BudgetError
from hypercompress.inspection import inspect
from hypercompress.menus import hulls
from hypercompress.specs import COUNTED, Budget, Measured, ModelSpec, Unit
from tests.allocated import layer, model_of


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


def test_a_budget_out_of_reach_names_the_large_layer_that_no_budget_reaches() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.Embedding(100, 16))
    spec = inspect(model, torch.zeros(2, 16), lambda net, batch: net[0](batch))
    energies = {item.name: torch.ones(item.full_rank).double() for item in spec.candidates}
    words = r"1 layers can be factored, rank 1 in each is the least; 1 stays dense: no kind .* for Embedding\); choose"
    with pytest.raises(BudgetError, match=words):
        allocate(spec, energies, Budget(params=0.5), nats=True)


class Holding(nn.Module):
    """Holds a large matrix itself."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.layer = nn.Parameter(torch.ones(64, 64)), nn.Linear(16, 64)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x) @ self.large
        return out


def test_a_budget_out_of_reach_names_what_the_model_holds_itself() -> None:
    spec = inspect(Holding(), torch.zeros(2, 16))
    energies = {item.name: torch.ones(item.full_rank).double() for item in spec.candidates}
    with pytest.raises(BudgetError, match=r"is the least; what it holds itself stays dense: no kind .* for Holding\);"):
        allocate(spec, energies, Budget(params=0.5), nats=True)


def test_a_budget_of_macs_where_none_are_counted() -> None:
    spec = inspect(nn.Sequential(nn.EmbeddingBag(50, 10), nn.LayerNorm(10)), torch.zeros(8, 7).long())
    assert spec.macs == 0
    words = "received a budget of macs for a model in which none are counted; expected .*; choose a budget of params"
    for share in (0.5, 1.0):
        with pytest.raises(BudgetError, match=words):
            allocate(spec, {}, Budget(macs=share), nats=True)
    with pytest.raises(BudgetError, match=words):
        pareto(spec, {}, Unit.MACS)
    assert allocate(spec, {}, Budget(params=1.0), nats=True).cost == spec.params


def test_everything_stays_dense_at_a_budget_of_one() -> None:
    spec = model_of([layer("a", 12, 20), layer("b", 30, 9)], 57)
    energies = {item.name: torch.zeros(item.full_rank).double() for item in spec.candidates}
    plan = allocate(spec, energies, Budget(macs=1.0), nats=True)
    assert (dict(plan.ranks), plan.cost, plan.achieved) == ({}, spec.macs, 1.0)


def test_model_without_candidates_fits_a_budget_of_one_alone() -> None:
    spec = ModelSpec((), 10, 10, ())
    assert allocate(spec, {}, Budget(params=1.0), nats=True).cost == 10
    with pytest.raises(BudgetError, match=r"for a model in which nothing can be factored \(no layers\); expected a l"):
        allocate(spec, {}, Budget(params=0.99), nats=True)


def test_a_model_in_which_nothing_can_be_factored_says_why() -> None:
    single = inspect(nn.Linear(64, 64), torch.zeros(2, 64))
    with pytest.raises(BudgetError, match=r"nothing can be factored \(itself: it is the whole model, .* it in nn.S"):
        allocate(single, {}, Budget(params=0.5), nats=True)
    kept = inspect(nn.Sequential(*[nn.LayerNorm(n) for n in (8, 8, 8, 8)], nn.Linear(8, 1)), torch.zeros(2, 8))
    with pytest.raises(BudgetError, match=r"\(0: a normalisation .*; 1: a .*; 2: a [^;]*; and more\); expected a "):
        allocate(kept, {}, Budget(macs=0.5), nats=True)


def test_layers_of_which_no_form_is_faster_cannot_be_factored() -> None:
    spec = model_of([replace(layer("a", 12, 20), measured=Measured(100, ()))], 0)
    with pytest.raises(BudgetError, match=r"nothing can be factored \(a: no form of it was faster\);"):
        allocate(spec, {"a": torch.ones(12).double()}, Budget(params=0.5), nats=True)


def test_of_a_budget_of_parameters_no_form_has_more_multiply_accumulates_than_dense() -> None:
    conv = replace(layer("a", 16, 8 * 9, 4), axis=1, taps=9, input_positions=64, strided=True)
    assert conv.projects
    generator = torch.Generator().manual_seed(0)
    energies, inputs = (
        {"a": torch.rand(n, generator=generator).double().sort(descending=True).values} for n in (16, 8)
    )
    forms = [
        form for form, _, _ in hulls(model_of([conv]), energies, Unit.PARAMS, inputs)["a"] if form.rank is not None
    ]
    assert any(form.input_rank is not None for form in forms)
    for form in forms:
        assert form.rank is not None
        assert all(conv.cost(each, form.rank, form.input_rank) < conv.dense_cost(each) for each in COUNTED)


def test_a_slower_form_that_loses_more_is_not_taken() -> None:
    """What is left over buys rank 8, and not the rank 2 that was measured to take longer still."""
    timed = replace(layer("a", 16, 16), measured=Measured(100, ((4, 0, 10), (8, 0, 20), (2, 0, 25))))
    spec = replace(model_of([timed]), latency=100)
    plan = allocate(spec, {"a": torch.linspace(1, 0.1, 16).double()}, Budget(latency=0.27), nats=True)
    assert plan.ranks == {"a": 8}


def test_what_is_left_over_is_spent_where_a_unit_of_it_gains_most() -> None:
    """Two ranks of 32 parameters that gain 1 each, and not one of 64 that gains 1.5; neither layer can be dense."""
    spec = model_of([layer("a", 16, 16), layer("b", 32, 32)])
    energies = {"a": torch.ones(16).double(), "b": 1.5 * torch.ones(32).double()}
    plan = allocate(spec, energies, Budget(params=(32 + 64 + 64) / spec.params), nats=True)
    assert plan.ranks == {"a": 3, "b": 1}
