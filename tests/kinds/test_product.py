"""The weight of a factored layer costs nothing to look at, and is the product to whatever computes with it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hypercompress.kinds import LowRank, low_rank_like
from hypercompress.kinds.product import Shown

LOOKS: dict[str, Callable[[Tensor], Any]] = {
    **{name: lambda w, name=name: getattr(w, name) for name in ("dtype", "device", "layout", "shape", "ndim")},
    **{name: lambda w, name=name: getattr(w, name) for name in ("is_cuda", "is_cpu", "is_meta", "requires_grad")},
    **{name: lambda w, name=name: getattr(w, name)() for name in ("size", "dim", "numel", "element_size")},
    **{name: lambda w, name=name: getattr(w, name)() for name in ("is_floating_point", "is_complex", "get_device")},
    "one size": lambda w: w.size(-1),
    "len": len,
    "is a tensor": lambda w: isinstance(w, Tensor),
}
USES: dict[str, Callable[[Tensor], Any]] = {
    "clone": lambda w: w.clone(),
    "detach": lambda w: w.detach(),
    "cpu": lambda w: w.cpu(),
    "dtype": lambda w: w.to(torch.float32),
    "data": lambda w: w.data,
    "arithmetic": lambda w: 2 * w - w.multiply(3),
    "matmul": lambda w: w.flatten(1) @ torch.ones(w[0].numel(), 2, dtype=w.dtype),
    "matmul from the left": lambda w: torch.ones(3, len(w), dtype=w.dtype) @ w.flatten(1),
    "index": lambda w: w[1:, 0],
    "in a list": lambda w: torch.stack([w, w]),
    "keyword": lambda w: F.linear(torch.ones(2, w[0].numel(), dtype=w.dtype), weight=w.flatten(1)),
    "written into another": lambda w: torch.zeros(w.shape, dtype=w.dtype).copy_(w),
    "comparison": lambda w: w > 0,
    "number": lambda w: w.sum().item(),
    "numpy": lambda w: torch.from_numpy(w.detach().numpy()),
    "dlpack": lambda w: torch.from_dlpack(w.detach()),
    "text": repr,
}


class Operations(TorchDispatchMode):
    """What runs inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def filled(dense: nn.Module, rank: int, input_rank: int | None = None) -> LowRank:
    layer = low_rank_like(dense, rank, input_rank)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=torch.Generator().manual_seed(parameter.numel()))
    return layer


def in_turn() -> LowRank:
    """A layer whose factors are factored: a student of a student."""
    layer = filled(nn.Linear(8, 6, dtype=torch.float64), 4)
    layer.reduce, layer.expand = filled(layer.reduce, 2), filled(layer.expand, 3)
    return layer


LAYERS: dict[str, Callable[[], tuple[LowRank, nn.Module]]] = {
    "linear": lambda: (filled(nn.Linear(8, 6).double(), 2), nn.Linear(8, 6).double()),
    "convolution": lambda: (filled(nn.Conv2d(4, 6, 3).double(), 2), nn.Conv2d(4, 6, 3).double()),
    "both sides": lambda: (filled(nn.Conv2d(4, 6, 3).double(), 3, 2), nn.Conv2d(4, 6, 3).double()),
    "in turn": lambda: (in_turn(), nn.Linear(8, 6).double()),
}


@pytest.fixture(params=LAYERS)
def pair(request: pytest.FixtureRequest) -> tuple[LowRank, nn.Module]:
    """A factored layer and a dense one of its shape."""
    return LAYERS[request.param]()


def answers(layer: nn.Module, shape: torch.Size) -> Tensor:
    """The weight as the layer's answers to a basis of its inputs tell it: no property is asked."""
    basis = torch.eye(shape[1:].numel(), dtype=torch.float64).reshape(-1, *shape[1:])
    rows: Tensor = layer(basis) - layer(torch.zeros_like(basis[:1]))
    return rows.flatten(1).T.reshape(shape)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("look", LOOKS)
def test_a_look_is_the_dense_layers_and_runs_nothing(pair: tuple[LowRank, nn.Module], look: str, device: str) -> None:
    layer, dense = (module.to(device) for module in pair)
    with Operations() as operations:
        seen = LOOKS[look](layer.weight)
    assert operations.seen == []
    assert seen == LOOKS[look](dense.weight)


@pytest.mark.parametrize("use", USES)
def test_a_use_gets_the_product(pair: tuple[LowRank, nn.Module], use: str) -> None:
    layer, dense = pair
    expected = USES[use](answers(layer, dense.weight.shape).detach())
    with torch.no_grad():
        got = USES[use](layer.weight)
    if isinstance(got, Tensor):
        assert type(got) is (Shown if use == "data" else Tensor)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    else:
        assert got == (pytest.approx(expected) if isinstance(expected, float) else expected)


def test_gradients_reach_every_factor(pair: tuple[LowRank, nn.Module]) -> None:
    layer, dense = pair
    shape = dense.weight.shape
    probe = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factors = [parameter for parameter in layer.parameters() if parameter.ndim > 1]
    got, expected = (
        torch.autograd.grad((weight.sin() * probe).sum(), factors) for weight in (layer.weight, answers(layer, shape))
    )
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert layer.weight.requires_grad
    assert not layer.requires_grad_(False).weight.requires_grad


class Custom(torch.autograd.Function):
    """A function with a backward of its own; no torch function is asked before it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradients[0] @ weight, gradients[0].T @ x


def test_functions_with_their_own_backward_reach_the_factors_too() -> None:
    layer, x = filled(nn.Linear(8, 6).double(), 2), torch.randn(3, 8, dtype=torch.float64)
    gradients = []
    for output in (Custom.apply(x, layer.weight), F.linear(x, layer.weight)):
        layer.zero_grad()
        output.square().sum().backward()
        gradients.append([layer.reduce.weight.grad, layer.expand.weight.grad])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_it_follows_its_factors_as_a_parameter_would() -> None:
    layer = filled(nn.Linear(8, 6), 2)
    weight, before = layer.weight, layer.weight.detach()
    with torch.no_grad():
        layer.expand.weight.mul_(2)
    assert torch.equal(weight.detach(), 2 * before)


def test_copies_are_plain_tensors() -> None:
    layer = filled(nn.Linear(8, 6), 2)
    with torch.no_grad():
        for copied in (copy.deepcopy(layer.weight), copy.copy(layer.weight), nn.Parameter(layer.weight.detach()).data):
            assert type(copied) is Tensor
            assert torch.equal(copied, layer.weight)
    assert torch.equal(copy.deepcopy(layer).weight.detach(), layer.weight.detach())


def test_c_code_that_asks_nobody_is_refused_or_right() -> None:
    """It would read memory that is not there: no numbers are stored."""
    layer, dense = filled(nn.Linear(8, 6), 2), nn.Linear(8, 6)
    with pytest.raises(RuntimeError, match="incompatible tensor type"):
        dense.weight.data = layer.weight
    with pytest.raises(BufferError, match="meta"):
        torch.utils.dlpack.to_dlpack(layer.weight)
    with pytest.warns(UserWarning, match="To copy construct from a tensor"):
        assert torch.equal(torch.tensor(layer.weight), layer.weight.detach())
    dense.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    assert torch.equal(dense.weight, layer.weight)
