"""Grouped convolutions: each group is a matrix of its own, and is cut, counted and timed as one."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from timm.layers.std_conv import StdConv2d
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hypercompress import Budget, compress
from hypercompress.factorize import plain_frame
from hypercompress.inspection import inspect
from hypercompress.kinds import by_group, factors_of, fill, kind_of, low_rank_like
from hypercompress.latency import _forms, measure_latency
from hypercompress.specs import (
    Side,
    Status,
    Unit,
)
from tests.strategies import grouped, random


def side_of(weight: Tensor) -> Side:
    return Side.OUTPUT if weight.shape[-2] <= weight.shape[-1] else Side.INPUT


def factored(dense: Any, rank: int) -> Any:
    """The plain SVD of each group at a rank."""
    kind = kind_of(dense)
    assert kind is not None
    weight, layer = kind.matrix(dense), low_rank_like(dense, rank)
    fill(layer, plain_frame(weight, side_of(weight)).factors(weight, rank), dense.bias)
    return layer


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel lengths")
@settings(max_examples=500)
@given(grouped())
def test_full_rank_in_every_group_is_the_dense_layer(case: tuple[nn.Module, Tensor]) -> None:
    dense, x = case
    kind, wanted = kind_of(dense), dense(x)
    assert kind is not None
    layer = factored(dense, min(kind.matrix(dense).shape[-2:]))
    tolerance = 1e-10 * float(wanted.detach().abs().max())
    assert layer.weight.shape == dense.weight.shape
    torch.testing.assert_close(layer(x), wanted, rtol=0, atol=tolerance)
    torch.testing.assert_close(layer.to_dense()(x), wanted, rtol=0, atol=tolerance)
    torch.testing.assert_close(factors_of(layer).product(), kind.matrix(dense), rtol=0, atol=tolerance)


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel lengths")
@settings(max_examples=100)
@given(grouped())
def test_rows_times_the_matrix_of_each_group_are_its_outputs(case: tuple[nn.Module, Tensor]) -> None:
    dense, x = case
    kind = kind_of(dense)
    assert kind is not None
    bias = 0 if dense.bias is None else dense.bias
    rows = kind.input_rows(dense, x)
    outputs = by_group(kind.rows(dense(x)) - bias, kind.groups(dense))
    torch.testing.assert_close(rows @ kind.matrix(dense).mT, outputs)
    torch.testing.assert_close(kind.input_mean(dense, x), rows.mean(-2))


@settings(max_examples=40)
@given(grouped())
def test_each_group_is_cut_to_its_own_best_directions(case: tuple[nn.Module, Tensor]) -> None:
    dense, x = case
    kind = kind_of(dense)
    assert kind is not None
    layer = factored(dense, 1)
    U, s, Vh = torch.linalg.svd(kind.matrix(dense), full_matrices=False)
    wanted = (U[..., :1] * s[:, None, :1]) @ Vh[:, :1]
    torch.testing.assert_close(layer.weight.detach(), wanted.reshape(dense.weight.shape), rtol=0, atol=1e-10)
    dense = layer.to_dense()
    torch.testing.assert_close(dense(x), layer(x), rtol=0, atol=1e-10)
    assert (dense.groups, layer.groups) == (kind.groups(dense), dense.groups)


@pytest.mark.parametrize("unit", [Unit.PARAMS, Unit.MACS])
@pytest.mark.parametrize("share", [0.5, 0.7, 0.9])
def test_costs_are_what_is_counted(unit: Unit, share: float) -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 24, 3, stride=2, padding=1, groups=2, bias=False),
        nn.BatchNorm2d(24),
        nn.Conv2d(24, 64, 1, groups=4),
        StdConv2d(64, 32, 3, groups=4, padding=1),
        nn.Conv2d(32, 32, 3, groups=32),
        nn.Flatten(),
        nn.Linear(32 * 8, 9),
    ).eval()
    x = torch.randn(2, 4, 11, 8)
    budget = Budget(params=share) if unit is Unit.PARAMS else Budget(macs=share)
    before = copy.deepcopy(model.state_dict())
    student = compress(model, budget, None, "svd", example=x)
    spec = inspect(model, x)
    assert [layer.groups for layer in spec.layers if layer.groups > 1] == [2, 4, 4, 32]
    assert not any(layer.projects for layer in spec.layers if layer.groups > 1)
    assert sum(layer.dense_macs for layer in spec.layers) == spec.macs == counted(model, x)
    assert spec.layers[4].reason == "depthwise convolution (groups=32)"
    assert set(student.ranks) & {"0", "2", "3"}
    assert student.report["student"]["params"] == sum(p.numel() for p in student.parameters())
    assert student.report["student"]["macs"] == counted(student, x)
    for name, rank in student.ranks.items():
        (layer,) = (layer for layer in spec.layers if layer.name == name)
        assert 1 <= rank <= layer.max_rank or layer.projects
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def counted(model: nn.Module, x: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x)
    return int(counter.get_total_flops()) // 2 // len(x)


def test_what_pays_is_judged_group_by_group() -> None:
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 64, 3, padding=1, groups=8),  # depthwise with a multiplier
        nn.Conv2d(64, 32, 1, groups=32),
    )
    layers = inspect(model, torch.randn(2, 8, 5, 5)).layers
    assert [(layer.status, layer.reason) for layer in layers] == [
        (Status.KEPT, "depthwise convolution (groups=8)"),
        (Status.FACTORED, ""),
        (Status.KEPT, "1 x 2 in each of 32 groups: even rank 1 is no smaller than dense"),
    ]
    wide = layers[1]
    assert (wide.out, wide.rows, wide.d, wide.channels) == (64, 8, 9, 8)
    assert (wide.max_rank, wide.full_rank, wide.rank_params) == (4, 8, 64 + 72)
    assert wide.dense_params == 64 * 9 == sum(p.numel() for p in model[1].parameters()) - 64


def test_a_compiler_gets_the_weight_of_every_group() -> None:
    layer, x = factored(nn.Conv2d(8, 12, 3, groups=4, dtype=torch.float64), 2), random(2, 8, 5, 5)

    def reads(x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, layer.weight, layer.bias, groups=4)

    torch.testing.assert_close(torch.compile(reads, backend="eager", fullgraph=True)(x), layer(x))


def test_ranks_that_are_timed_fill_kernels_with_the_channels_of_all_groups(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(96, 96, 3, padding=1, groups=4), nn.Flatten(), nn.Linear(96 * 16, 5)).eval()
    x = torch.randn(1, 96, 4, 4)
    spec = inspect(model, x)
    forms = list(_forms(spec.layers[0]))
    assert [rank for rank, _ in forms] == list(range(4, spec.layers[0].max_rank + 1, 4))
    assert all(rank * 4 % 16 == 0 and inner == 0 for rank, inner in forms)
    timed = measure_latency(model, spec, x, cache=tmp_path / "cache.json")
    assert timed.layers[0].measured is not None
    assert all(time < timed.layers[0].measured.dense for _, _, time in timed.layers[0].measured.forms)
