"""One meta-training step: ridge before training, gradients to the network alone, and something to learn."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hypercompress.transfer.meta import episode_outcome
from hypercompress.transfer.network import TransferNetwork
from hypercompress.transfer.ridge import fit_ridge

Make = Callable[..., Any]


def test_before_training_it_is_ridge_regression(make_backbone: Make, make_task: Make) -> None:
    backbone, sites = make_backbone()
    x, y = make_task(shots=6)
    support, query = (x[:9], y[:9]), (x[9:], y[9:])
    outcome = episode_outcome(TransferNetwork(), backbone, sites, support, query)
    logits = fit_ridge(backbone(support[0]), support[1], 3).logits(backbone(query[0]))
    assert float(outcome.loss.detach()) == pytest.approx(float(F.cross_entropy(logits, query[1])), rel=1e-5)
    assert outcome.plain_loss == pytest.approx(float(F.cross_entropy(logits, query[1])), rel=1e-5)
    assert outcome.accuracy == outcome.plain_accuracy == float((logits.argmax(1) == query[1]).float().mean())


def test_gradients_reach_every_parameter_of_the_network_and_none_of_the_backbone(
    make_backbone: Make, make_task: Make, trained: Make
) -> None:
    backbone, sites = make_backbone()
    x, y = make_task(shots=6)
    network = trained()
    episode_outcome(network, backbone, sites, (x[:9], y[:9]), (x[9:], y[9:])).loss.backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())
    assert all(
        bool(p.grad.any()) for name, p in network.named_parameters() if "slope" not in name and p.grad is not None
    )
    assert all(p.grad is None for p in backbone.parameters())


def test_the_gradient_is_that_of_the_loss_at_the_penalty_and_scale_that_were_chosen(
    make_backbone: Make, make_task: Make, trained: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Along one direction, by a central difference."""
    backbone, sites = make_backbone()
    x, y = make_task(shots=6)
    fixed = fit_ridge(backbone(x[:9]), y[:9], 3)
    monkeypatch.setattr("hypercompress.transfer.meta.fit_ridge", lambda *_: fixed)
    network, arguments = trained(), (backbone, sites, (x[:9], y[:9]), (x[9:], y[9:]))
    episode_outcome(network, *arguments).loss.backward()
    weight = network.hidden.weight
    assert weight.grad is not None
    direction, values = torch.randn_like(weight), []
    slope = float((weight.grad * direction).sum())
    for sign in (1, -1):
        with torch.no_grad():
            weight += sign * 1e-3 * direction
            values.append(float(episode_outcome(network, *arguments).loss))
            weight -= sign * 1e-3 * direction
    assert (values[0] - values[1]) / 2e-3 == pytest.approx(slope, rel=0.05, abs=1e-3)


def test_it_learns_an_episode(make_backbone: Make, make_task: Make) -> None:
    backbone, sites = make_backbone()
    x, y = make_task(shots=8)
    network = TransferNetwork()
    optimizer, losses = torch.optim.Adam(network.parameters(), lr=1e-2), []
    for _ in range(20):
        outcome = episode_outcome(network, backbone, sites, (x[:9], y[:9]), (x[9:], y[9:]))
        optimizer.zero_grad()
        outcome.loss.backward()
        optimizer.step()
        losses.append(float(outcome.loss.detach()))
    assert losses[0] == pytest.approx(outcome.plain_loss, rel=1e-5)
    assert min(losses) < outcome.plain_loss - 0.05
