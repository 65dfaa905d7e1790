"""Nobody writes into the weight of a factored layer: it would be lost, so it is refused."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from hypercompress.errors import HypercompressError
from hypercompress.kinds import LowRank, low_rank_like

WRITES: dict[str, Callable[[Tensor], object]] = {
    "arithmetic": lambda w: w.mul_(2),
    "operator": lambda w: w.__isub__(1),
    "copy": lambda w: w.copy_(torch.zeros(w.shape)),
    "item": lambda w: w.__setitem__(0, 0),
    "data": lambda w: w.data.mul_(2),
    "data, operator": lambda w: w.data.__imul__(2),
    "data, item": lambda w: w.data.__setitem__((0, 1), 0),
    "data, copy": lambda w: w.data.copy_(torch.zeros(w.shape)),
    "data, detached": lambda w: w.data.detach().zero_(),
    "other data": lambda w: setattr(w, "data", torch.zeros(w.shape)),
    "no gradient": lambda w: w.requires_grad_(False),
    "no gradient, by name": lambda w: setattr(w, "requires_grad", False),
    "out": lambda w: torch.add(w, 1, out=w),
    "out of data": lambda w: torch.add(w, 1, out=w.data),
    "activation": lambda w: F.relu(w, inplace=True),
    "list": lambda w: torch._foreach_mul_([w], 2),
    "operation": lambda w: torch.ops.aten.mul_(w, 2),
    "overload": lambda w: torch.ops.aten.mul_.Tensor(w, 2),
    "by keyword": lambda w: torch.ops.aten.fill_.Scalar(self=w, value=2),
    **{
        name: lambda w, name=name: getattr(nn.init, f"{name}_")(w)
        for name in ("zeros", "ones", "normal", "uniform", "trunc_normal", "eye", "orthogonal")
    },
    **{
        name: lambda w, name=name: getattr(nn.init, f"{name}_")(w)
        for name in ("kaiming_uniform", "kaiming_normal", "xavier_uniform", "xavier_normal")
    },
    "init of data": lambda w: nn.init.kaiming_uniform_(w.data),
    "init of data, all zeros": lambda w: nn.init.zeros_(w.data),
}


@pytest.fixture
def layer() -> LowRank:
    made = low_rank_like(nn.Linear(8, 6), 2)
    for parameter in made.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(parameter.numel()))
    return made


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("write", WRITES)
def test_a_write_is_refused_and_changes_nothing(
    layer: LowRank, write: str, mode: Callable[[], AbstractContextManager[None]]
) -> None:
    before = copy.deepcopy(layer.state_dict())
    with mode(), pytest.raises(RuntimeError, match=r"received a write .* of a factored layer; .* its fac") as told:
        WRITES[write](layer.weight)
    assert isinstance(told.value, HypercompressError)
    assert all(torch.equal(value, layer.state_dict()[name]) for name, value in before.items())


def test_the_numbers_of_a_weight_go_wherever_those_of_another_do(layer: LowRank) -> None:
    """Into a parameter, a layer, a file; what is made of them may be written into."""
    product, dense = layer.weight.detach(), nn.Linear(8, 6)
    parameter = nn.Parameter(layer.weight.data)
    assert type(parameter) is nn.Parameter
    assert parameter.requires_grad
    assert torch.equal(parameter, product)
    dense.weight.data = layer.weight.data
    assert type(dense.weight) is nn.Parameter
    assert torch.equal(dense.weight, product)
    for writable in (parameter, dense.weight):
        torch.optim.SGD([writable], lr=1.0).zero_grad()
        with torch.no_grad():
            writable.add_(1)
        torch.testing.assert_close(writable - 1, product)
    for copied in (layer.weight.data.clone(), copy.deepcopy(layer.weight.data), layer.weight.data * 1):
        assert type(copied) is Tensor
        assert torch.equal(copied.add_(0), product)
    assert torch.equal(torch.from_numpy(layer.weight.data.numpy()), product)


def test_the_factors_are_written_into_as_ever(layer: LowRank) -> None:
    before = layer.weight.detach().clone()
    layer.expand.weight.data.mul_(2)
    assert torch.equal(layer.weight.detach(), 2 * before)
    target = torch.zeros(6, 8)
    target.copy_(layer.weight)
    target[0] = layer.weight[0]
    with torch.no_grad():
        torch.add(layer.weight, 0, out=target)
    assert torch.equal(target, 2 * before)


def test_the_product_is_pruned_in_its_factors() -> None:
    layer = low_rank_like(nn.Linear(8, 6), 3)
    before = list(layer.state_dict())
    with pytest.raises(
        HypercompressError, match=r"as the parameter weight_orig.*prune its factors \(layer\.reduce and"
    ):
        prune.l1_unstructured(layer, "weight", 0.5)
    assert list(layer.state_dict()) == before
    prune.l1_unstructured(layer.reduce, "weight", 0.5)
    assert (layer.reduce.weight == 0).sum() == 12
    assert layer(torch.ones(2, 8)).shape == (2, 6)
