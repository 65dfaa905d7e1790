"""What the transfer network reads, feature by feature from its formula."""

from math import log, log2, log10

import pytest
import torch
from torch import Tensor, nn

from hypercompress.transfer import fit_ridge
from hypercompress.transfer.adaptable import Role, Site
from hypercompress.transfer.features import channel_features, read_task
from hypercompress.transfer.moments import Moments

CHANNELS = 5


@pytest.fixture
def model() -> nn.Sequential:
    made = nn.Sequential(nn.BatchNorm1d(CHANNELS), nn.Linear(CHANNELS, CHANNELS))
    with torch.no_grad():
        made[0].weight.copy_(torch.tensor([0.5, -2.0, 1.0, 0.3, -0.7]))
        made[0].bias.uniform_(-1, 1)
    return made


def site(role: Role) -> Site:
    return Site(
        "0" if role is Role.NORM else "1", role, CHANNELS, 1, torch.eye(CHANNELS) if role is Role.CORE else None
    )


def found() -> Moments:
    return Moments(torch.randn(CHANNELS), *(torch.rand(CHANNELS) + low for low in (3.0, 0.1, 0.2)))


@pytest.mark.parametrize("role", Role)
def test_of_channels(role: Role, model: nn.Sequential) -> None:
    module, given = model[0] if role is Role.NORM else model[1], found()
    deviation, ones = given.variance.sqrt(), torch.ones(CHANNELS)
    bias, scale = module.bias.detach(), module.weight.detach().abs() if role is Role.NORM else ones
    mean, logs = given.mean, given.variance.log()
    if role is not Role.NORM:  # of a normalised channel mean 0 and variance 1 mean something
        mean, logs = mean / deviation, logs - logs.mean()
    separation = given.between / (given.between + given.within)
    shift = {Role.NORM: bias / scale, Role.BIAS: bias / deviation, Role.CORE: 0 * bias}[role]
    wanted = (
        (mean.abs() if role is Role.CORE else mean) / 2,  # a direction has no sign of its own
        logs / 3,
        separation,
        separation - separation.mean(),
        (given.between + given.within) / given.variance,
        (scale.log() - scale.log().mean()) / 2,
        shift / 2,
        ones,
    )
    torch.testing.assert_close(channel_features(model, site(role), given), torch.stack(wanted, 1), rtol=1e-4, atol=1e-5)


def test_of_sites_and_the_task(model: nn.Sequential) -> None:
    sites = [site(Role.NORM), site(Role.CORE)]
    moments, head = {one.name: found() for one in sites}, fit_ridge(torch.randn(12, 6), torch.arange(12) % 3, 3)
    assert head.loo_loss is not None
    task = read_task(model, sites, moments, head, 12)
    for place, one in enumerate(sites):
        table: Tensor = channel_features(model, one, moments[one.name])
        assert torch.equal(task.channels[task.site == place], table)
        about = torch.tensor([log2(CHANNELS) / 10, float(place), *(float(one.role is role) for role in Role)])
        wanted = torch.cat([table.mean(0), table.std(0, correction=0), about])
        torch.testing.assert_close(task.sites[place], wanted)
    signs = torch.cat([torch.ones(CHANNELS), moments[sites[1].name].mean.sign()])
    assert torch.equal(task.sign, signs)
    apart = torch.stack([given.between / (given.between + given.within) for given in moments.values()])
    of_task = [log2(3) / 5, log2(4) / 5, min(2.0, head.loo_loss / log(3)), 0.0, log10(head.penalty) / 4]
    torch.testing.assert_close(task.task, torch.tensor([*of_task, float(apart.mean())]), rtol=1e-4, atol=1e-5)
