"""The rate of the steps is the one at which views end best, and what is kept is the run at that rate."""

import copy
import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from hypercompress import adapt
from hypercompress.errors import NonFiniteError
from hypercompress.transfer import nearness, rates
from hypercompress.transfer.nearness import Nearness
from hypercompress.transfer.rates import CANDIDATES, FEWEST, rates_of, tune_at_best
from hypercompress.transfer.tuning import LAST, Change, Tuned, tune
from hypercompress.transfer.views import step_viewer

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


@pytest.mark.parametrize(
    ("task", "steps", "views", "all_of_them"),
    [
        (Nearness.UNKNOWN, 50, 8, False),
        (Nearness.NEAR, 50, 8, False),
        (Nearness.FAR, 50, 8, True),
        (Nearness.FAR, 50, 0, False),
        (Nearness.FAR, FEWEST, 1, True),
        (Nearness.FAR, FEWEST - 1, 8, False),
    ],
)
def test_rates_are_tried_on_far_tasks_only(task: Nearness, steps: int, views: int, all_of_them: bool) -> None:
    assert rates_of(Tuned.ALL, task, steps, views) == CANDIDATES[Tuned.ALL][: None if all_of_them else 1]
    assert rates_of(Tuned.NORMS, task, steps, views) == CANDIDATES[Tuned.NORMS]
    assert len(CANDIDATES[Tuned.ALL]) > len(CANDIDATES[Tuned.NORMS]) == 1


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
    monkeypatch.setattr(rates, "TRIAL_STEPS", tried)
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

    found, losses = tune_at_best(model, names_of(model), lambda: [batch], count, TRIED, views, progress)
    assert losses == {rate: loss for rate, (loss, _) in alone.items()}
    best = min(losses, key=losses.__getitem__)
    assert found == best == 1e-2, "neither the first nor the last, so that the order does not decide"
    assert same(model, alone[best][1])
    runs = [(rate, min(tried, count)) for rate in TRIED] + ([(best, count)] if tried < count else [])
    assert told == [(step + 1, f"at a rate of {rate:g}") for rate, many in runs for step in range(many)]


def test_a_rate_that_diverges_is_none_to_take(model: nn.Module, make_task: Make) -> None:
    batch, start = make_task(), copy.deepcopy(model)
    for order in ((1e-3, 1e30), (1e30, 1e-3)):
        again = copy.deepcopy(start)
        found, losses = tune_at_best(again, names_of(model), lambda: [batch], 5, order, views)
        assert (found, losses[1e30]) == (1e-3, math.inf)
        wanted = copy.deepcopy(start)
        tune(wanted, names_of(model), lambda: [batch], 5, 1e-3, views())
        assert same(again, wanted)
    with pytest.raises(NonFiniteError, match=r"at each learning rate of 1e\+30, 1e\+31; expected .* pass a lower rate"):
        tune_at_best(model, names_of(model), lambda: [batch], 5, (1e30, 1e31), views)


def test_of_equal_losses_the_run_of_the_rate_that_is_named_is_kept(model: nn.Module, make_task: Make) -> None:
    """The loss of a single step is that before it, so that it is the same at every rate."""
    batch, alone = make_task(), copy.deepcopy(model)
    found, losses = tune_at_best(model, names_of(model), lambda: [batch], 1, TRIED, views)
    assert len(set(losses.values())) == 1
    tune(alone, names_of(model), lambda: [batch], 1, found, views())
    assert same(model, alone)


def test_a_rate_that_diverges_after_its_trial_gives_way_to_the_next(
    model: nn.Module, make_task: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rates, "TRIAL_STEPS", 4)
    batch, alone, plain = make_task(shots=6), copy.deepcopy(model), rates.tune

    def diverging(*args: Any) -> float:
        if args[3] > 4 and args[4] == 1e-2:
            raise NonFiniteError("received a loss of nan")
        return plain(*args)

    monkeypatch.setattr(rates, "tune", diverging)
    found, losses = tune_at_best(model, names_of(model), lambda: [batch], 12, (1e-4, 1e-2), views)
    assert min(losses, key=losses.__getitem__) == 1e-2
    assert found == 1e-4
    plain(alone, names_of(model), lambda: [batch], 12, 1e-4, views())
    assert same(model, alone)
    with pytest.raises(NonFiniteError, match="at each learning rate"):
        tune_at_best(model, names_of(model), lambda: [batch], 12, (1e-2, 1e30), views)


@pytest.mark.parametrize("far", [True, False])
def test_adapt_says_what_it_tried(
    model: nn.Module, make_task: Make, monkeypatch: pytest.MonkeyPatch, far: bool
) -> None:
    monkeypatch.setattr(nearness, "BAR", -1.0 if far else 1e9)
    monkeypatch.setattr(rates, "FEWEST", 3)
    monkeypatch.setitem(rates.CANDIDATES, Tuned.ALL, (3e-4, 1e-3, 1e30))
    x, y = make_task()
    options: dict[str, Any] = {"network": "none", "views": 2, "steps": 3, "follow": 0.5}
    student = adapt(model, x, y, **options)
    told = student.report["transfer"]
    tried = {row["rate"]: row["loss"] for row in told["rates"]}
    assert tuple(tried) == ((3e-4, 1e-3, 1e30) if far else ())
    json.dumps(student.report, allow_nan=False)
    if far:
        assert tried[1e30] is None
        assert told["rate"] == min((3e-4, 1e-3), key=lambda rate: tried[rate])
    else:
        assert told["rate"] == 3e-4
    given = adapt(model, x, y, **options, rate=told["rate"])
    assert given.report["transfer"]["rates"] == []
    assert same(student, given)
    assert all(p.grad is None for p in student.parameters())
    assert adapt(model, x, y, network="none", views=2).report["transfer"]["rates"] == []
