"""What cannot be had is refused before anything is measured."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypercompress import Budget, compress
from hypercompress.errors import BudgetError, ModelError
from hypercompress.preparation import Wanted, prepare
from hypercompress.specs import Measured, ModelSpec


class Mixing(nn.Module):
    """A layer of no known kind: of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(12))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("oc,bchw->bohw", self.weight, x)


class MeasuredError(Exception):
    """Something was measured."""


def network(*others: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 12, 3), *others, nn.ReLU(), nn.Conv2d(12, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 5),
    ).eval()  # fmt: skip


def images(count: int = 64) -> list[Tensor]:
    return list(torch.randn(count, 2, 12, 12, generator=torch.Generator().manual_seed(0)).split(16))


NO_IMAGES = {"example": torch.zeros(2, 2, 12, 12)}  # so noise stands in
GIVEN = pytest.mark.parametrize("given", [{"data": images()}, NO_IMAGES], ids=["images", "noise"])


def never(*_: Any) -> None:
    raise MeasuredError


@GIVEN
def test_a_budget_out_of_reach(given: dict[str, Any]) -> None:
    with pytest.raises(BudgetError, match=r"received a params budget of 0\.001; expected between 0\.\d+ and 1"):
        compress(network(), Budget(params=0.001), **given, progress=never)


@GIVEN
def test_a_layer_of_no_kind(given: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="1 of 4 layers are unsupported: 1 "):
        compress(network(Mixing()), Budget(params=0.9), **given, strict=True, progress=never)
    assert compress(network(Mixing()), Budget(params=0.9), **given).ranks


class Listed(nn.Module):
    """A layer that is called by another name than its own, so that no twin would run in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 12, 3)
        self.hidden = [self.conv]
        self.out = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))

    def forward(self, x: Tensor) -> Any:
        return self.out(self.hidden[0](x))


@GIVEN
def test_a_layer_whose_twin_would_not_run(given: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match="layers are unsupported: conv "):
        compress(Listed().eval(), Budget(params=0.9), **given, strict=True, progress=never)


@GIVEN
def test_after_the_times_nothing_is_measured(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """No form is faster here, so that nothing can be factored."""

    def slow(model: nn.Module, spec: ModelSpec, *_: Any, **__: Any) -> ModelSpec:
        return replace(spec, layers=tuple(replace(layer, measured=Measured(1, ())) for layer in spec.layers))

    monkeypatch.setattr("hypercompress.preparation.preparing.measure_latency", slow)
    with pytest.raises(BudgetError, match="in which nothing can be factored"):
        compress(network(), Budget(params=0.5), **given, fast=True, progress=never)


@GIVEN
def test_what_can_be_had_is_measured(given: dict[str, Any]) -> None:
    with pytest.raises(MeasuredError):
        compress(network(), Budget(params=0.9), **given, strict=True, progress=never)


def test_times_are_no_share_that_can_be_judged_beforehand() -> None:
    plan = prepare(network(), images(), "kfac")
    Wanted(Budget(latency=0.001)).check(plan.teacher, plan.spec)
    with pytest.raises(BudgetError):
        Wanted(Budget(macs=0.001)).check(plan.teacher, plan.spec)


def test_nothing_is_refused_if_nothing_is_asked() -> None:
    plan = prepare(network(Mixing()), images(), "kfac")
    Wanted().check(plan.teacher, plan.spec)
    with pytest.raises(ModelError):
        Wanted(strict=True).check(plan.teacher, plan.spec)
