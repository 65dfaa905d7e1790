"""The low-rank layers: two plain modules each, so that export, quantization and FLOP counters need no special case."""

from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hypercompress.specs import LayerFactors


class _LowRank(nn.Sequential):
    """``expand(reduce(x))``. ``weight`` and ``bias`` read as the dense layer's would, for code that looks at them."""

    reduce: nn.Module
    expand: nn.Module

    @property
    def bias(self) -> Tensor | None:
        bias: Tensor | None = self.expand.bias  # type: ignore[assignment]
        return bias


class LowRankLinear(_LowRank):
    """``y = E (R x) + b`` with ``R [r, in]`` and ``E [out, r]``.

    Shape: ``[..., in]`` to ``[..., out]``, as `torch.nn.Linear`.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        self.add_module("reduce", nn.Linear(in_features, rank, bias=False))
        self.add_module("expand", nn.Linear(rank, out_features, bias=bias))

    @classmethod
    def like(cls, dense: nn.Linear, rank: int) -> "LowRankLinear":
        return cls(dense.in_features, dense.out_features, rank, dense.bias is not None)

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        return _matrix(self.expand) @ _matrix(self.reduce)

    def to_dense(self) -> nn.Linear:
        dense = nn.Linear(self.in_features, self.out_features, self.bias is not None)
        return _filled(dense, self)


class LowRankConv2d(_LowRank):
    """A k x k convolution to r channels, then a 1 x 1 convolution to ``out`` (channel factorization).

    Stride, padding, dilation and padding mode belong to the first. Shape: as the `torch.nn.Conv2d` it replaces.
    """

    def __init__(self, dense: nn.Conv2d, rank: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.rank = dense.in_channels, dense.out_channels, rank
        self.kernel_size, self.stride, self.padding = dense.kernel_size, dense.stride, dense.padding
        self.dilation, self.groups, self.padding_mode = dense.dilation, 1, dense.padding_mode
        self.add_module(
            "reduce",
            nn.Conv2d(
                dense.in_channels,
                rank,
                _pair(dense.kernel_size),
                _pair(dense.stride),
                dense.padding if isinstance(dense.padding, str) else _pair(dense.padding),
                _pair(dense.dilation),
                bias=False,
                padding_mode=dense.padding_mode,
            ),
        )
        self.add_module("expand", nn.Conv2d(rank, dense.out_channels, 1, bias=dense.bias is not None))

    @classmethod
    def like(cls, dense: nn.Conv2d, rank: int) -> "LowRankConv2d":
        return cls(dense, rank)

    @property
    def weight(self) -> Float[Tensor, "out in kh kw"]:
        shape = (self.out_channels, self.in_channels, *self.kernel_size)
        return (_matrix(self.expand) @ _matrix(self.reduce)).reshape(shape)

    def to_dense(self) -> nn.Conv2d:
        dense = nn.Conv2d(
            self.in_channels,
            self.out_channels,
            _pair(self.kernel_size),
            _pair(self.stride),
            self.padding if isinstance(self.padding, str) else _pair(self.padding),
            _pair(self.dilation),
            bias=self.bias is not None,
            padding_mode=self.padding_mode,
        )
        return _filled(dense, self)


LowRank = LowRankLinear | LowRankConv2d
_Dense = TypeVar("_Dense", nn.Linear, nn.Conv2d)


def low_rank_like(dense: nn.Module, rank: int) -> LowRank:
    """The empty low-rank layer that stands in for ``dense``, on its device, in its dtype."""
    if not isinstance(dense, (nn.Linear, nn.Conv2d)):
        raise TypeError(f"received {type(dense).__name__}; expected nn.Linear or nn.Conv2d; inspect() says which are")
    layer: LowRank
    layer = LowRankLinear.like(dense, rank) if isinstance(dense, nn.Linear) else LowRankConv2d.like(dense, rank)
    return layer.to(dense.weight.device, dense.weight.dtype)


@torch.no_grad()
def fill(layer: LowRank, factors: LayerFactors, bias: Tensor | None) -> None:
    """Copy factors (and the bias they bring, else the dense layer's) into a low-rank layer."""
    for part, value in ((layer.reduce, factors.reduce), (layer.expand, factors.expand)):
        assert isinstance(part.weight, Tensor)
        part.weight.copy_(value.reshape(part.weight.shape))
    new = bias if factors.bias is None else factors.bias
    if layer.bias is not None and new is not None:
        layer.bias.copy_(new)


def _matrix(module: nn.Module) -> Tensor:
    assert isinstance(module.weight, Tensor)
    return module.weight.flatten(1)


def _pair(value: tuple[int, ...]) -> tuple[int, int]:
    return int(value[0]), int(value[1])


@torch.no_grad()
def _filled(dense: _Dense, low: LowRank) -> _Dense:
    expand, reduce = _matrix(low.expand), _matrix(low.reduce)
    dense = dense.to(expand.device, expand.dtype).train(low.training)
    state = {"weight": (expand.double() @ reduce.double()).reshape(dense.weight.shape)}
    if low.bias is not None:
        state["bias"] = low.bias
    dense.load_state_dict(state)
    return dense
