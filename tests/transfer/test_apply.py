"""Changes in a model: identities for norms, biases and cores; functional and written are the same model."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from hypercompress import Budget, compress
from hypercompress.kinds import LowRank
from hypercompress.transfer.adaptable import Role, Site, adaptable
from hypercompress.transfer.apply import adapted_parameters, write
from hypercompress.transfer.backbone import Backbone
from hypercompress.transfer.moments import Moments, Recorder
from hypercompress.transfer.network import Changes
from hypercompress.transfer.reading import generate_parameters, read_support

Make = Callable[..., Any]


def changes(sites: tuple[Site, ...], fill: float = 0.0, **given: Tensor) -> Changes:
    m = sum(site.channels for site in sites)
    zeros = {"scale": torch.full((m,), fill), "shift": torch.zeros(m), "left": torch.zeros(m, 2)}
    zeros |= {"right": torch.zeros(m, 2), "mix": torch.zeros(len(sites))}
    return Changes(**{**zeros, **given})


def moments_of(model: nn.Module, sites: tuple[Site, ...], x: Tensor) -> dict[str, Moments]:
    recorder = Recorder(model, sites, 2)
    with recorder.batch(torch.arange(len(x)) % 2), torch.no_grad():
        model(x)
    return recorder.finish()


def applied(model: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    output: Tensor = torch.func.functional_call(model, parameters, (x,))
    return output


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
def test_no_change_is_the_model_bit_for_bit(name: str, make_backbone: Make, make_task: Make) -> None:
    backbone, sites = make_backbone(name)
    size = backbone.model.pretrained_cfg["input_size"][1]
    reading = read_support(backbone, [make_task(size=(1, size, size))], sites, 3)
    parameters = adapted_parameters(backbone.model, reading.sites, reading.moments, changes(reading.sites))
    assert len(parameters) > 10
    assert all(torch.equal(value, backbone.model.get_parameter(key)) for key, value in parameters.items())


def test_a_full_mix_gives_a_norm_the_moments_of_the_support_set() -> None:
    model, x = nn.Sequential(nn.BatchNorm2d(4)).eval(), 3 * torch.randn(8, 4, 6, 6) + 2
    sites = adaptable(model).sites
    found = adapted_parameters(model, sites, moments_of(model, sites, x), changes(sites, mix=torch.ones(1)))
    y = applied(model, found, x)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-4)
    torch.testing.assert_close(y.var((0, 2, 3), unbiased=False), torch.ones(4), rtol=1e-3, atol=0)


def test_scale_and_shift_of_a_norm_and_the_shift_of_a_bias_are_in_their_units() -> None:
    norm, layer = nn.LayerNorm(3), nn.Linear(3, 3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, -1.0, 0.5]))
    model, x = nn.Sequential(norm, layer).eval(), torch.randn(6, 3)
    sites = tuple(s for s in adaptable(model).sites if s.role is not Role.CORE)
    moments = moments_of(model, sites, x)
    said = changes(sites, shift=torch.full((6,), 0.5), scale=torch.full((6,), 0.1))
    found = adapted_parameters(model, sites, moments, said)
    torch.testing.assert_close(found["0.weight"], norm.weight.detach() * torch.tensor(0.1).exp())
    torch.testing.assert_close(found["0.bias"], norm.weight.detach().abs() / 2)
    wanted = layer(norm(x)).std(0, unbiased=False) / 2
    torch.testing.assert_close((found["1.bias"] - layer.bias).detach(), wanted.detach(), rtol=1e-4, atol=1e-5)


def test_a_core_acts_among_the_leading_directions_of_a_dense_layer() -> None:
    """``W + U D S V^T`` with the singular value decomposition of W."""
    layer = nn.Linear(7, 5, bias=False)
    model, x = nn.Sequential(layer), torch.randn(4, 7)
    (site,) = adaptable(model).sites
    scale, left, right = torch.randn(5), torch.randn(5, 2), torch.randn(5, 2)
    said = changes((site,), scale=scale, left=left, right=right)
    found = adapted_parameters(model, (site,), moments_of(model, (site,), x), said)
    _, s, vh = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
    assert site.frame is not None
    u = site.frame
    vh = u.T @ layer.weight.detach() / s[:, None]  # the signs that go with these left directions
    core = torch.diag(scale) + left @ right.T
    torch.testing.assert_close(found["0.weight"], layer.weight.detach() + u @ core @ torch.diag(s) @ vh)


def test_a_core_acts_between_the_factors_of_a_low_rank_layer() -> None:
    teacher = timm.create_model("test_resnet", num_classes=4).eval()
    model = compress(teacher, Budget(params=0.5), generator="svd").model
    name, layer = next((n, m) for n, m in model.named_modules() if isinstance(m, LowRank) and n != "fc")
    (site,) = (s for s in adaptable(model, "fc").sites if s.module == f"{name}.reduce")
    channels = next(layer.reduce.parameters()).shape[1]
    r = site.channels
    scale, left, right = torch.randn(r), torch.randn(r, 2), torch.randn(r, 2)
    zeros = torch.zeros(r)
    said = changes((site,), scale=scale, left=left, right=right)
    write(model, adapted_parameters(model, (site,), {site.name: Moments(zeros, zeros, zeros, zeros)}, said))
    before = compress(teacher, Budget(params=0.5), generator="svd").model.get_submodule(name)
    assert isinstance(before, LowRank)
    h = before.reduce(torch.randn(2, channels, 9, 9))
    core = torch.eye(r) + torch.diag(scale) + left @ right.T
    torch.testing.assert_close(
        layer.expand(h), before.expand(torch.einsum("rs,nshw->nrhw", core, h)), rtol=1e-3, atol=1e-4
    )


def test_written_and_functional_are_the_same_model(trained: Make, make_backbone: Make, make_task: Make) -> None:
    backbone, sites = make_backbone()
    x, y = make_task()
    reading = read_support(backbone, [(x, y)], sites, 3)
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with torch.no_grad():
        parameters = generate_parameters(trained(), backbone, reading)
        functional, plain = backbone.adapted(parameters, x), backbone(x)
        assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
        write(backbone.model, parameters)
        assert torch.equal(backbone(x), functional)
    assert not torch.allclose(functional, plain, rtol=1e-2)
    assert isinstance(backbone, Backbone)
