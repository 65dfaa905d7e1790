"""How far steps are followed, by how near the task is, and the weights between."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn

from hypercompress import adapt
from hypercompress.errors import GeneratorError
from hypercompress.saved.card import steps_line, transfer_line
from hypercompress.transfer import nearness, views
from hypercompress.transfer.nearness import Nearness
from hypercompress.transfer.rates import HALF, MANY, go_back, share_of

Make = Callable[..., Any]


@pytest.mark.parametrize(
    ("task", "images", "share"),
    [
        (Nearness.NEAR, 5 * MANY, HALF),
        (Nearness.NEAR, 5 * MANY + 1, 1.0),
        (Nearness.FAR, 10, 1.0),
        (Nearness.UNKNOWN, 10, 1.0),
    ],
)
def test_the_share_follows_from_the_task_and_the_images(task: Nearness, images: int, share: float) -> None:
    assert share_of(task, images, 5) == share


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_weights_lie_on_the_line(share: float) -> None:
    torch.manual_seed(0)
    model, before = nn.BatchNorm1d(3), {"weight": torch.randn(3), "bias": torch.randn(3)}
    assert model.running_mean is not None
    after, moments = {n: p.detach().clone() for n, p in model.named_parameters()}, model.running_mean.clone()
    go_back(model, before, share)
    for name, parameter in model.named_parameters():
        wanted = (1 - share) * before[name] + share * after[name]
        torch.testing.assert_close(parameter.detach(), wanted, rtol=0, atol=0 if share in (0, 1) else 1e-6)
    assert torch.equal(model.running_mean, moments)


def test_adapt_goes_as_far_as_it_says(make_task: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, (x, y) = timm.create_model("test_resnet", in_chans=1).eval(), make_task()
    options: dict[str, Any] = {"network": "none", "views": 1, "levels": False, "rate": 1e-3}
    monkeypatch.setattr(views, "MOVED", 1e9)  # the head is that of the images alone, however near they are
    start, end = (dict(adapt(model, x, y, **options, steps=count, follow=1).named_parameters()) for count in (0, 3))
    assert any(not torch.equal(value, end[name]) for name, value in start.items())
    for bar, asked, share in ((-1.0, None, 1.0), (1e9, None, HALF), (1e9, 1.0, 1.0), (-1.0, 0.2, 0.2)):
        monkeypatch.setattr(nearness, "BAR", bar)
        student = adapt(model, x, y, **options, steps=3, follow=asked)
        assert student.report["transfer"]["followed"] == share
        assert ("of the way" in steps_line(student.report["transfer"])) == (share < 1)
        for name, value in student.named_parameters():
            wanted = torch.lerp(start[name].detach(), end[name].detach(), share)
            torch.testing.assert_close(value.detach(), wanted, rtol=1e-5, atol=1e-6)


def test_steps_are_told_as_they_go(make_task: Make) -> None:
    model, (x, y) = timm.create_model("test_resnet", in_chans=1).eval(), make_task()
    told = list[tuple[str, int]]()
    adapt(model, x, y, network="none", steps=3, rate=1e-4, progress=lambda name, done, at="": told.append((name, done)))
    assert told == [("steps", 1), ("steps", 2), ("steps", 3)]


def test_without_steps_nothing_is_followed(make_task: Make) -> None:
    model, (x, y) = timm.create_model("test_resnet", in_chans=1).eval(), make_task()
    told = adapt(model, x, y, network="none", follow=0.5).report["transfer"]
    assert (told["steps"], told["followed"]) == (0, None)
    told = {"loo": {"plain": {"accuracy": 0.5}}, "kept": "plain", "ways": 2, "images": 6, "why": "", "penalty": 1}
    assert "accuracy before the steps 0.5000" in transfer_line({**told, "steps": 4})
    assert "accuracy 0.5000" in transfer_line({**told, "steps": 0})
    assert steps_line({"steps": 4, "tuned": "all"}) == "4 steps on all parameters", "of a student that is older"


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, float("nan")])
def test_a_share_that_is_none(share: float, make_task: Make) -> None:
    x, y = make_task()
    with pytest.raises(GeneratorError, match=r"received follow=.*; expected a share of the way in \(0, 1\]"):
        adapt(timm.create_model("test_resnet", in_chans=1), x, y, steps=1, follow=share)
