"""The transfer network: nothing before training, the same whatever the order of channels, bounded."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hypercompress.errors import GeneratorError
from hypercompress.transfer.adaptable import Role
from hypercompress.transfer.config import TransferConfig
from hypercompress.transfer.features import CHANNEL_FEATURES, SITE_FEATURES, TASK_FEATURES, Task, read_task
from hypercompress.transfer.network import Changes, TransferNetwork
from hypercompress.transfer.reading import read_support

Make = Callable[..., Any]


def some_task(sizes: tuple[int, ...]) -> Task:
    m = sum(sizes)
    site = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    sign = torch.ones(m)
    return Task(
        torch.randn(m, CHANNEL_FEATURES), site, sign, torch.randn(len(sizes), SITE_FEATURES), torch.randn(TASK_FEATURES)
    )


def parts(changes: Changes) -> list[Tensor]:
    return [changes.scale, changes.shift, changes.left @ changes.right.T, changes.mix]


def test_before_training_nothing_changes() -> None:
    changes = TransferNetwork()(some_task((3, 5, 2)))
    assert not any(bool(part.any()) for part in parts(changes))
    assert bool(changes.right.any())  # so that the other factor gets a gradient


def test_any_number_of_sites_and_channels_and_the_bounds_hold(trained: Make) -> None:
    network = trained(50.0)
    for sizes in ((1,), (4, 9), (2,) * 30):
        with torch.no_grad():
            changes = network(some_task(sizes))
        assert len(changes.scale) == sum(sizes)
        assert len(changes.mix) == len(sizes)
        c = network.config
        bounds = (c.scale_bound, c.shift_bound, c.core_bound, c.mix_bound)
        for part, bound in zip((changes.scale, changes.shift, changes.left, changes.mix), bounds, strict=True):
            assert bound / 2 < float(part.abs().max()) <= bound + 1e-6


def test_a_permutation_of_the_channels_permutes_the_changes(trained: Make) -> None:
    network, task = trained(), some_task((6, 5))
    order = torch.cat([torch.randperm(6), 6 + torch.randperm(5)])
    moved = replace(task, channels=task.channels[order])
    a, b = network(task), network(moved)
    torch.testing.assert_close(b.scale, a.scale[order])
    torch.testing.assert_close(b.left @ b.right.T, (a.left @ a.right.T)[order][:, order])
    torch.testing.assert_close(b.mix, a.mix)


def test_the_sign_of_a_direction_goes_into_the_core_and_nowhere_else(trained: Make) -> None:
    network, task = trained(), some_task((7,))
    sign = torch.tensor([1.0, -1, 1, 1, -1, -1, 1])
    a, b = network(task), network(replace(task, sign=sign))
    torch.testing.assert_close(b.scale, a.scale)
    torch.testing.assert_close(b.left @ b.right.T, sign[:, None] * (a.left @ a.right.T) * sign)


def test_what_it_reads_does_not_depend_on_the_order_of_the_images(make_task: Make, make_backbone: Make) -> None:
    backbone, sites = make_backbone()
    x, y = make_task()
    order = torch.randperm(len(x))
    readings = [
        read_support(backbone, batches, sites, 3)
        for batches in ([(x, y)], [(x[order][:5], y[order][:5]), (x[order][5:], y[order][5:])])
    ]
    a, b = (read_task(backbone.model, r.sites, r.moments, r.head, len(r.labels)) for r in readings)
    for name in ("channels", "sites", "task"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=1e-3, atol=1e-3)
    assert a.channels.shape[1] == CHANNEL_FEATURES
    assert float(a.channels.abs().max()) <= 2


@pytest.mark.parametrize(
    "wrong", [{"width": 10, "heads": 4}, {"depth": 0}, {"scale_bound": -1.0}, {"outer": 0}, {"roles": ()}]
)
def test_a_shape_that_cannot_be(wrong: dict[str, Any]) -> None:
    with pytest.raises(GeneratorError, match="expected sizes above 0"):
        TransferConfig(**wrong)


def test_the_config_adapts_every_role_by_default() -> None:
    assert TransferConfig().roles == tuple(Role)
