"""Budgets that meta-training samples can be reached, whatever the teacher."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from hypercompress.meta import Case, budget_at, generate, prepare_case, sample_budget
from hypercompress.specs import COUNTED, Unit
from tests.allocated import layer, model_of
from tests.meta_cases import images, small, teacher


class Unknown(nn.Conv2d):
    """Of no kind that is known."""


def narrow() -> nn.Module:
    """Most parameters cannot be factored, so that budgets have little room."""
    return nn.Sequential(
        nn.Conv2d(3, 96, 3), Unknown(96, 96, 3, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(96, 5)
    )


def easy() -> nn.Module:
    """Rank one already loses next to nothing."""
    model = teacher()
    model[8].weight.data *= 1e-4
    return model


def single() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 8))


@pytest.mark.parametrize("build", [teacher, narrow, easy, single])
def test_every_sampled_budget_can_be_reached(build: Callable[[], nn.Module]) -> None:
    found = prepare_case("x", build(), images())
    generator = torch.Generator().manual_seed(0)
    budgets = [sample_budget(found, generator) for _ in range(12)]
    assert len({budget.unit for budget in budgets}) == 2
    for budget in budgets:
        low, high = found.shares[budget.unit]
        assert low <= budget.share * (1 + 1e-12)
        assert budget.share <= high * (1 + 1e-12)
        emission, _ = generate(small(), found, budget, measured=True)
        assert emission.plan.achieved <= budget.share
    for unit, (low, high) in found.shares.items():
        assert 0 < low <= high <= 1, unit


@pytest.mark.parametrize("unit", COUNTED)
@pytest.mark.parametrize(
    ("measured", "place", "share"),
    [
        (True, 0.0, 0.04),
        (True, 0.5, 0.16),
        (True, 1.0, 0.64),
        (False, 0.0, 0.16),
        (False, 0.5, 0.64),
        (False, 1.0, 0.9),
    ],
)
def test_budgets_lie_evenly_in_the_logarithm_and_higher_without_data(
    unit: Unit, measured: bool, place: float, share: float
) -> None:
    spec = model_of([layer("a", 8, 8)])
    case = Case("a", nn.Identity(), spec, {}, {}, (), dict.fromkeys(COUNTED, (0.04, 0.64)))
    budget = budget_at(case, unit, place, measured=measured)
    assert budget.unit is unit
    assert budget.share == pytest.approx(share)
