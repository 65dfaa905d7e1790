"""How far steps are followed: the halves, the loss, the weights between, and what `adapt` makes of it."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hypercompress import adapt
from hypercompress.card import steps_line
from hypercompress.transfer.steps import SHARES, Tunable, calibrated_losses, follow, halves, judge_steps
from hypercompress.transfer.support import Support

Make = Callable[..., Any]
CPU = torch.device("cpu")


def line(images: int = 12) -> Support:
    """Two classes on a line: the sign of an image is its label, and images are all different."""
    x = torch.linspace(-1, 1, images)[:, None]
    return Support([(x, (x[:, 0] > 0).long())], 2)


def ending_at(weight: float) -> Callable[[Support], Tunable]:
    """A model that starts a little on the right side, and whose steps end at this weight."""

    def begin(part: Support) -> Tunable:
        model = nn.Linear(1, 2)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[-0.1], [0.1]]))
            model.bias.copy_(torch.tensor([0.0, 0.1]))

        def take() -> None:
            with torch.no_grad():
                model.weight.copy_(torch.tensor([[-weight], [weight]]))
                model.bias.zero_()

        return Tunable(model, take)

    return begin


def test_halves_are_of_every_class_and_leave_out_every_image_once() -> None:
    labels = torch.tensor([0] * 4 + [1] * 5 + [2] + [3] * 2)
    first, second, judging = halves(labels, 0)
    alone = labels == 2
    assert torch.equal(first & second, alone), "the image that is alone in its class is in both"
    assert bool((first | second).all())
    assert torch.equal(judging, ~alone)
    for half in (first, second):
        assert set(labels[half].tolist()) == {0, 1, 2, 3}
    assert [int((first & (labels == label)).sum()) for label in range(4)] == [2, 2, 1, 1]
    assert not torch.equal(first, halves(labels, 1)[0])
    assert torch.equal(first, halves(labels, 0)[0])


def test_what_is_asked_about_was_not_seen() -> None:
    seen = list[Tensor]()

    def begin(part: Support) -> Tunable:
        seen.append(torch.cat([images for images, _ in part.batches])[:, 0])
        return ending_at(1.0)(part)

    support = line()
    verdict = judge_steps(begin, support, CPU, 0)
    assert len(seen) == 2
    assert not set(seen[0].tolist()) & set(seen[1].tolist())
    assert verdict.images == 12


def test_the_loss_is_that_of_a_search_over_temperatures() -> None:
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(3, 40, 5), torch.randint(5, (40,))
    logits[1] += 4 * F.one_hot(labels, 5)
    grid = torch.logspace(-5, 2, 2000, base=2).tolist()
    wanted = [min(float(F.cross_entropy(scale * each, labels)) for scale in grid) for each in logits]
    torch.testing.assert_close(calibrated_losses(logits, labels), torch.tensor(wanted).double(), rtol=1e-4, atol=1e-4)
    more = calibrated_losses(2.5 * logits, labels)
    torch.testing.assert_close(more[1], calibrated_losses(logits, labels)[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("end", "share"), [(1.0, 1.0), (-1.0, 0.0), (-0.09, 0.0)])
def test_steps_that_help_are_followed_and_steps_that_harm_are_not(end: float, share: float) -> None:
    verdict = judge_steps(ending_at(end), line(), CPU, 0)
    assert verdict.share == share
    assert verdict.loss[SHARES.index(share)] == min(verdict.loss)
    assert (verdict.accuracy[2] == 1.0) == (end > 0)


def test_half_of_the_way_where_the_end_is_too_far() -> None:
    """From one side of the truth to the other, the middle is right."""

    def begin(part: Support) -> Tunable:
        model = nn.Linear(1, 2)

        def put(bias: float) -> None:
            with torch.no_grad():
                model.weight.copy_(torch.tensor([[-1.0], [1.0]]))
                model.bias.copy_(torch.tensor([bias, -bias]))

        put(0.7)
        return Tunable(model, lambda: put(-0.7))

    verdict = judge_steps(begin, line(), CPU, 0)
    assert verdict.share == 0.5
    assert verdict.accuracy[1] == 1.0 > max(verdict.accuracy[0], verdict.accuracy[2])


@pytest.mark.parametrize("share", SHARES)
def test_weights_lie_on_the_line(share: float) -> None:
    tunable = ending_at(1.0)(line())
    before = {name: p.detach().clone() for name, p in tunable.model.named_parameters()}
    follow(tunable, share)
    got = dict(tunable.model.named_parameters())
    end = {"weight": torch.tensor([[-1.0], [1.0]]), "bias": torch.zeros(2)}
    for name, value in got.items():
        wanted = {0.0: before[name], 0.5: (before[name] + end[name]) / 2, 1.0: end[name]}[share]
        torch.testing.assert_close(value.detach(), wanted, rtol=0, atol=0 if share != 0.5 else 1e-7)


def test_steps_of_no_use_take_no_time() -> None:
    def take() -> None:
        raise AssertionError("they were taken")

    follow(Tunable(nn.Linear(1, 2), take), 0.0)


def test_adapt_leaves_out_steps_that_harm(make_task: Make) -> None:
    """At a rate of 1 the network is destroyed: the student is the one without steps, bit for bit."""
    torch.manual_seed(0)
    model, (x, y) = timm.create_model("test_resnet", in_chans=1).eval(), make_task()
    plain = adapt(model, x, y, network="none", views=0)
    judged = adapt(model, x, y, network="none", views=0, steps=4, rate=0.3)
    assert all(torch.equal(value, plain.state_dict()[key]) for key, value in judged.state_dict().items())
    told = judged.report["transfer"]
    assert (told["steps"], told["tuned"], told["judged"]["steps"], told["judged"]["share"]) == (0, None, 4, 0.0)
    assert told["judged"]["images"] == len(x)
    assert steps_line(told) == "none of 4 steps (loss of left-out images)"
    kept = adapt(model, x, y, network="none", views=0, steps=4, rate=0.3, keep_steps=True)
    assert not torch.equal(kept(x), plain(x))
    assert kept.report["transfer"]["steps"] == 4


def test_adapt_goes_as_far_as_it_says(make_task: Make) -> None:
    """Whatever was chosen, the weights are at that share of the way of the steps that are kept unjudged."""
    torch.manual_seed(0)
    model, (x, y) = timm.create_model("test_resnet", in_chans=1).eval(), make_task()
    options: dict[str, Any] = {"network": "none", "views": 0}
    start = dict(adapt(model, x, y, **options).named_parameters())
    shares = set()
    for rate in (1e-6, 1e-3, 1e-2, 0.3):
        end = dict(adapt(model, x, y, **options, steps=3, rate=rate, keep_steps=True).named_parameters())
        judged = adapt(model, x, y, **options, steps=3, rate=rate)
        share = judged.report["transfer"]["judged"]["share"]
        shares.add(share)
        for name, value in judged.named_parameters():
            wanted = torch.lerp(start[name].detach(), end[name].detach(), share)
            torch.testing.assert_close(value.detach(), wanted, rtol=1e-5, atol=1e-6)
    assert len(shares) > 1


def test_steps_are_kept_where_nothing_can_be_left_out(make_task: Make) -> None:
    torch.manual_seed(0)
    model, (x, y) = timm.create_model("test_resnet", in_chans=1).eval(), make_task(shots=1)
    told = adapt(model, x, y, network="none", steps=1, rate=1e-4).report["transfer"]
    assert (told["steps"], told["judged"]["share"]) == (1, 1.0)
    assert told["judged"]["why"].startswith("one image a class")
    loader, names = DataLoader(TensorDataset(*make_task()), batch_size=4), ["a", "b", "c"]
    told = adapt(model, loader, network="none", steps=1, rate=1e-4, names=names).report["transfer"]
    assert told["judged"]["why"].startswith("images that are read anew")
    assert steps_line(told) == "1 steps on all parameters"
