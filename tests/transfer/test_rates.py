"""The rate of the steps is the one at which views end best, and what is kept is the run at that rate."""

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from hypercompress import adapt
from hypercompress.errors import NonFiniteError
from hypercompress.transfer import rates, steps
from hypercompress.transfer.rates import RATES, rates_of, tune_at_best
from hypercompress.transfer.steps import NEAR
from hypercompress.transfer.tuning import LAST, Change, Tuned, tune
from hypercompress.transfer.views import Look, step_viewer

Make = Callable[..., Any]
TRIED = (1e-4, 1e-2, 3e-1)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", in_chans=1, num_classes=3).eval()


def names_of(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def views() -> Change:
    return step_viewer(2, seed=0)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, b.get_parameter(name)) for name, p in a.named_parameters())


@pytest.mark.parametrize(("moved", "far"), [(None, False), (0.0, False), (NEAR, False), (1.01 * NEAR, True)])
def test_rates_are_tried_on_far_tasks_only(moved: float | None, far: bool) -> None:
    for what in Tuned:
        assert rates_of(what, Look(8, True, "", moved=moved)) == (RATES[what] if far else RATES[what][:1])


def test_the_loss_of_a_run_is_that_of_its_last_steps(model: nn.Module, make_task: Make) -> None:
    batch, count = make_task(), LAST + 3
    seen = list[float]()

    def note(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            seen.append(float(nn.functional.cross_entropy(model(images), labels)))
        return images, labels

    found = tune(model, names_of(model), lambda: [batch], count, 1e-3, note)
    assert len(seen) == count
    assert found == pytest.approx(sum(seen[-LAST:]) / LAST, rel=1e-5)
    assert math.isnan(tune(model, names_of(model), lambda: [batch], 0, 1e-3))


@pytest.mark.parametrize("tried", [4, 50])
def test_the_run_with_the_least_loss_is_kept(
    model: nn.Module, make_task: Make, monkeypatch: pytest.MonkeyPatch, tried: int
) -> None:
    """With more steps than are tried, all of them at that rate from where they began."""
    monkeypatch.setattr(rates, "TRIED", tried)
    batch, count = make_task(shots=6), 12
    alone = {}
    for rate in TRIED:
        ended = copy.deepcopy(model)
        loss = tune(copy.deepcopy(model), names_of(model), lambda: [batch], min(tried, count), rate, views())
        tune(ended, names_of(model), lambda: [batch], count, rate, views())
        alone[rate] = (loss, ended)
    told = list[tuple[int, str]]()

    def progress(signal: str, done: int, at: str = "") -> None:
        assert signal == "steps"
        told.append((done, at))

    losses = tune_at_best(model, names_of(model), lambda: [batch], count, TRIED, views, progress)
    assert losses == {rate: loss for rate, (loss, _) in alone.items()}
    best = min(losses, key=losses.__getitem__)
    assert best == 1e-2, "neither the first nor the last, so that the order does not decide"
    assert same(model, alone[best][1])
    runs = [(rate, min(tried, count)) for rate in TRIED] + ([(best, count)] if tried < count else [])
    assert told == [(step + 1, f"at a rate of {rate:g}") for rate, many in runs for step in range(many)]


def test_a_rate_that_diverges_is_none_to_take(model: nn.Module, make_task: Make) -> None:
    batch, start = make_task(), copy.deepcopy(model)
    for order in ((1e-3, 1e30), (1e30, 1e-3)):
        again = copy.deepcopy(start)
        losses = tune_at_best(again, names_of(model), lambda: [batch], 5, order, views)
        assert losses[1e30] == math.inf
        wanted = copy.deepcopy(start)
        tune(wanted, names_of(model), lambda: [batch], 5, 1e-3, views())
        assert same(again, wanted)
    with pytest.raises(NonFiniteError, match="lower the learning rate"):
        tune_at_best(model, names_of(model), lambda: [batch], 5, (1e30, 1e31), views)


@pytest.mark.parametrize("far", [True, False])
def test_adapt_says_what_it_tried(
    model: nn.Module, make_task: Make, monkeypatch: pytest.MonkeyPatch, far: bool
) -> None:
    monkeypatch.setattr(steps, "NEAR", -1.0 if far else 1e9)
    x, y = make_task()
    options: dict[str, Any] = {"network": "none", "views": 2, "steps": 3, "follow": 1}
    student = adapt(model, x, y, **options)
    told = student.report["transfer"]
    tried = {row["rate"]: row["loss"] for row in told["rates"]}
    assert tuple(tried) == (RATES[Tuned.ALL] if far else ())
    assert told["rate"] == (min(tried, key=tried.__getitem__) if far else RATES[Tuned.ALL][0])
    given = adapt(model, x, y, **options, rate=told["rate"])
    assert given.report["transfer"]["rates"] == []
    assert same(student, given)
    assert adapt(model, x, y, network="none", views=2).report["transfer"]["rates"] == []
