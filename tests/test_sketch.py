"""What a generator may read: views of weights, norm statistics, curvature with data and none without."""

import pytest
import torch
from timm.layers import BatchNormAct2d, LayerNorm2d
from torch import nn

from hypercompress.curvature import measure
from hypercompress.inspection import inspect
from hypercompress.sketch import norm_statistics, sketch


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 6), nn.LayerNorm(6)
    ).eval()


def test_sketch_views_the_teachers_own_memory() -> None:
    model, x = network(), torch.randn(4, 3, 6, 6)
    found = sketch(model, inspect(model, x), [x])
    assert set(found) == {"0", "4"}
    assert found["0"].weight.data_ptr() == model[0].weight.data_ptr()
    assert found["0"].weight.shape == (8, 27)
    assert not found["0"].weight.requires_grad
    assert found["0"].bias is None
    assert torch.equal(found["4"].bias, model[4].bias)
    assert found["0"].feeder is None
    assert found["0"].follower is not None
    assert found["0"].follower.moments
    assert found["4"].follower is not None
    assert not found["4"].follower.moments


def test_curvature_is_the_measured_one_or_none() -> None:
    model, x = network(), torch.randn(4, 3, 6, 6)
    spec = inspect(model, x)
    with_data, without = sketch(model, spec, [x], seed=3), sketch(model, spec, None)
    measured = measure(model, spec, [x], seed=3)
    for name, item in with_data.items():
        assert item.curvature is not None
        assert torch.equal(item.curvature.fisher, measured[name].fisher)
        assert without[name].curvature is None


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4), BatchNormAct2d(4), nn.SyncBatchNorm(4)])
def test_batch_norms_tell_their_moments(norm: nn.Module) -> None:
    norm.running_mean.normal_()
    norm.running_var.uniform_(1, 2)
    found = norm_statistics(norm)
    assert found is not None
    assert torch.equal(found.mean, norm.running_mean)
    assert torch.equal(found.variance, norm.running_var)
    assert (found.moments, found.eps) == (True, 1e-5)


@pytest.mark.parametrize("norm", [nn.LayerNorm(4), LayerNorm2d(4), nn.GroupNorm(2, 4), nn.RMSNorm(4)])
def test_other_norms_have_none(norm: nn.Module) -> None:
    found = norm_statistics(norm)
    assert found is not None
    assert not found.moments
    assert torch.equal(found.variance, torch.ones(4))
    assert torch.equal(found.bias, torch.zeros(4))


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(4, affine=False), nn.LayerNorm((4, 4)), nn.Identity()])
def test_norms_without_a_scale_per_channel_say_nothing(norm: nn.Module) -> None:
    assert norm_statistics(norm) is None


def test_batch_norm_without_running_moments_has_none() -> None:
    found = norm_statistics(nn.BatchNorm2d(4, track_running_stats=False))
    assert found is not None
    assert not found.moments
