"""An allocation that is bent: other ranks, the same prediction for the same ranks."""

import pytest
import torch
from torch import Tensor, nn

from hypercompress.allocation import predicted_kl
from hypercompress.generator import ANALYTIC, by_depth, weighted
from hypercompress.preparation import Plan, prepare
from hypercompress.specs import Budget, Unit

KFAC = ANALYTIC["kfac"]
BUDGET = Budget(params=0.4)


@pytest.fixture(scope="module")
def plan() -> Plan:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(2, 20, 3, padding=1), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Conv2d(20, 20, 3, padding=1), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(20, 7)).eval()
    data: tuple[Tensor, ...] = torch.randn(48, 2, 8, 8, generator=torch.Generator().manual_seed(1)).split(8)
    return prepare(network, data, "kfac")


def test_weights_rise_evenly_from_the_first_layer_to_the_last(plan: Plan) -> None:
    weights = by_depth(plan.spec, 3.0)
    assert list(weights) == [layer.name for layer in plan.spec.candidates]
    values = torch.tensor(list(weights.values()))
    torch.testing.assert_close(values, torch.linspace(-1.5, 1.5, len(values)))
    assert set(by_depth(plan.spec, 0.0).values()) == {0.0}


def test_a_tilt_moves_ranks_to_late_layers_within_the_budget(plan: Plan) -> None:
    sizes = {layer.name: layer.rank_cost(Unit.PARAMS) for layer in plan.spec.candidates}
    centres = []
    for tilt in (-4.0, 0.0, 4.0):
        made = weighted(KFAC, by_depth(plan.spec, tilt)).generate(plan.spec, plan.sketches, BUDGET).plan
        assert made.achieved <= BUDGET.params
        spent = {n: made.ranks[n] * size if n in made.ranks else plan.spec.params for n, size in sizes.items()}
        early, late = list(spent.values())[1], list(spent.values())[3]
        centres.append(late / early)
    assert centres[0] < centres[1] < centres[2]


def test_without_weights_it_is_kfac_and_weights_add_up(plan: Plan) -> None:
    plain = KFAC.generate(plan.spec, plan.sketches, BUDGET)
    assert weighted(KFAC, {}).generate(plan.spec, plan.sketches, BUDGET).plan == plain.plan
    name = plan.spec.candidates[1].name
    twice = weighted(weighted(KFAC, {name: 1.0}, "a"), {name: 0.5})
    assert (twice.weights, twice.name) == ({name: 1.5}, "a")


def test_the_prediction_is_that_of_the_additive_model(plan: Plan) -> None:
    known = KFAC.directions(plan.spec, plan.sketches)
    made = weighted(KFAC, by_depth(plan.spec, 4.0)).generate(plan.spec, plan.sketches, BUDGET).plan
    energies = KFAC.energies(known.outputs), KFAC.energies(known.inputs)
    assert made.predicted_kl == pytest.approx(predicted_kl(plan.spec, energies[0], made, energies[1]))
    plain = KFAC.generate(plan.spec, plan.sketches, BUDGET).plan
    assert plain.predicted_kl is not None
    assert made.predicted_kl is not None
    assert made.predicted_kl > plain.predicted_kl  # the even allocation has the least
