"""Distillation and pruning as the benchmark programs do them."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.shared.common import Set, fidelity
from benchmarks.shared.distillation import Recipe, distil, from_random
from benchmarks.shared.pruning import prune
from hypercompress.architecture import Architecture


def test_distillation_lowers_the_loss_and_leaves_the_start_alone(
    network: tuple[nn.Module, Architecture], images: Set
) -> None:
    start, recipe = from_random(network[0], 1), Recipe("adamw", 1e-2, steps=30, batch=32)
    taught = replace(images, logits=3.0 * torch.randn(len(images), 10))
    before = {name: tensor.clone() for name, tensor in start.state_dict().items()}
    trained = distil(start, taught, recipe, 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in start.state_dict().items())
    assert fidelity(network[0], trained, taught).kl < 0.9 * fidelity(network[0], start, taught).kl
    again = distil(start, taught, recipe, 0)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), again.parameters(), strict=True))


def test_the_learning_rate_rises_and_falls() -> None:
    factors = [Recipe("sgd", 1.0, steps=100).factor(step) for step in range(101)]
    assert max(factors) == 1.0
    assert factors[0] == 0.1
    assert factors[100] == pytest.approx(0)
    assert factors[:10] == sorted(factors[:10])
    assert factors[10:] == sorted(factors[10:], reverse=True)


def test_pruning_keeps_no_fewer_parameters(network: tuple[nn.Module, Architecture], images: Set) -> None:
    whole = sum(p.numel() for p in network[0].parameters())
    sizes = [whole // 2, whole // 4]
    found = prune(network[0], images, sizes, steps=10)
    assert sum(p.numel() for p in network[0].parameters()) == whole
    assert set(found) == set(sizes)
    for size, model in found.items():
        assert size <= sum(p.numel() for p in model.parameters()) < whole
        assert model(images.images[:2]).shape == (2, 10)
