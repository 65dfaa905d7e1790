"""Which parameters can be adapted, with a reason for each module where none can, and what is read there."""

import pytest
import timm
import torch
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from hypercompress import Budget, compress
from hypercompress.kinds import LowRank
from hypercompress.transfer.adaptable import Role, adaptable, channels_first, leading_directions, normalised

MODELS = (
    "test_resnet",
    "test_efficientnet",
    "test_vit",
    "test_convnext",
    "test_nfnet",
    "test_mambaout",
    "test_byobnet",
)


@pytest.mark.parametrize("name", MODELS)
def test_each_module_with_parameters_has_a_site_or_a_reason(name: str) -> None:
    model = timm.create_model(name, num_classes=4).eval()
    found = adaptable(model, "head")
    owners = {n for n, m in model.named_modules() if any(True for _ in m.parameters(recurse=False))}
    with_site = {site.module for site in found.sites}
    assert owners <= with_site | set(found.refused)
    assert not with_site & set(found.refused)
    assert len({site.name for site in found.sites}) == len(found.sites) > 10
    assert all(found.refused.values())


def test_a_student_has_cores_where_it_is_low_rank() -> None:
    student = compress(timm.create_model("test_resnet", num_classes=4).eval(), Budget(params=0.5), generator="svd")
    low = [name for name, module in student.model.named_modules() if isinstance(module, LowRank)]
    found = adaptable(student.model, "fc")
    cores = {site.module: site for site in found.sites if site.role is Role.CORE}
    assert low
    for name in set(low) - {"fc"}:
        assert cores[f"{name}.reduce"].channels == student.ranks[name]
        assert cores[f"{name}.reduce"].frame is None
        assert f"{name}.expand" not in cores


@pytest.mark.parametrize("norm", ["layernorm2d", "layernorm2dfp32"])
def test_norms_with_channels_first(norm: str) -> None:
    model = timm.create_model("test_convnext", num_classes=4, norm_layer=norm, conv_mlp=True).eval()
    sites = {site.module: site for site in adaptable(model, "head.fc", (Role.NORM,)).sites}
    assert {site.axis for name, site in sites.items() if name != "head.norm"} == {1}


def test_roles_choose() -> None:
    model = timm.create_model("test_vit", num_classes=4)
    for role in Role:
        assert {site.role for site in adaptable(model, "head", (role,)).sites} == {role}


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (nn.BatchNorm2d(6), torch.randn(3, 6, 4, 5)),
        (nn.BatchNorm1d(6), torch.randn(3, 6)),
        (nn.GroupNorm(2, 6), torch.randn(3, 6, 4, 5)),
        (nn.LayerNorm(6), torch.randn(3, 7, 6)),
        (LayerNorm2d(6), torch.randn(3, 6, 4, 5)),
        (nn.RMSNorm(6, eps=1e-6), torch.randn(3, 7, 6)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_read_of_a_norm_is_what_it_scales(module: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_()
        for buffer in module.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 2)
    (site,) = adaptable(nn.Sequential(module)).sites
    assert (site.role, site.channels) == (Role.NORM, 6)
    output = module.eval()(x)
    values = site.read(module, x, output)
    bias = getattr(module, "bias", None)
    wanted = channels_first(output, site.axis)
    scaled = values * module.weight[:, None] + (0 if bias is None else bias[:, None])
    torch.testing.assert_close(scaled, wanted)
    assert normalised(module, x, site.axis).shape == x.shape


def test_what_is_read_of_a_layer_is_its_output_and_its_leading_directions() -> None:
    layer, x = nn.Linear(5, 3), torch.randn(4, 7, 5)
    bias, core = adaptable(nn.Sequential(layer)).sites
    y = layer(x)
    torch.testing.assert_close(bias.read(layer, x, y), y.movedim(-1, 1))
    u, s, vh = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
    wanted = torch.einsum("nti,ri->nrt", x, s[:, None] * vh)
    got = core.read(layer, x, y)
    torch.testing.assert_close(got.abs(), wanted.abs(), rtol=1e-4, atol=1e-5)
    assert core.frame is not None
    torch.testing.assert_close((core.frame.T @ u).abs(), torch.eye(3), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_leading_directions_are_those_of_the_svd(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, dtype=torch.float64)
    u = torch.linalg.svd(matrix, full_matrices=False).U[:, :3]
    torch.testing.assert_close((leading_directions(matrix, 3).T @ u).abs(), torch.eye(3, dtype=torch.float64))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.BatchNorm2d(4, affine=False), None),
        (nn.BatchNorm2d(4, track_running_stats=False), "a BatchNorm that keeps no moments"),
        (nn.LayerNorm((4, 5)), "a norm over several axes at once"),
        (nn.Conv2d(4, 4, 3, groups=4, bias=False), "a grouped layer without a bias"),
        (nn.PReLU(4), "no scale, bias or matrix that is known: PReLU"),
    ],
)
def test_reasons(module: nn.Module, reason: str | None) -> None:
    found = adaptable(nn.Sequential(module))
    assert found.sites == ()
    assert found.refused == ({} if reason is None else {"0": reason})


def test_what_is_shared_or_computed_is_left_alone() -> None:
    shared = nn.Linear(3, 3)
    other = nn.Linear(3, 3)
    other.weight = shared.weight
    found = adaptable(nn.Sequential(shared, other, weight_norm(nn.Linear(3, 3))))
    assert {name: reason.split()[0] for name, reason in found.refused.items()} == {
        "0": "its",
        "1": "its",
        "2": "no",
        "2.parametrizations.weight": "no",
    }
    assert found.sites == ()
