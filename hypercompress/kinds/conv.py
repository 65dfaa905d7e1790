"""Convolutions of one, two and three dimensions: a full kernel to r channels, then a pointwise one (channel
factorization).
"""

from typing import Any

from jaxtyping import Float
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from hypercompress.kinds.low_rank import LowRank
from hypercompress.kinds.protocol import LayerKind

POINTWISE: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class LowRankConv(LowRank):
    """A convolution to r channels, then one with kernel 1 to ``out``.

    Stride, padding, dilation and padding mode belong to the first.

    Args:
        dense: what it stands in for; only its geometry is read.
        rank: number of channels between.
        like: class of the first convolution; ``Conv2dSame`` pads by the size of each input.

    Shape: as the convolution that it replaces.
    """

    def __init__(self, dense: Any, rank: int, like: type[nn.Module]) -> None:
        self.like = like
        self.in_channels, self.out_channels = dense.in_channels, dense.out_channels
        self.kernel_size, self.stride, self.padding = dense.kernel_size, dense.stride, dense.padding
        self.dilation, self.groups, self.padding_mode = dense.dilation, 1, dense.padding_mode
        pointwise = POINTWISE[len(dense.kernel_size)](rank, dense.out_channels, 1, bias=dense.bias is not None)
        super().__init__(self._convolution(rank, bias=False), pointwise, rank)

    def _convolution(self, out: int, *, bias: bool) -> nn.Module:
        geometry: dict[str, Any] = {"stride": self.stride, "dilation": self.dilation, "bias": bias}
        if self.like is not Conv2dSame:
            geometry |= {"padding": self.padding, "padding_mode": self.padding_mode}
        return self.like(self.in_channels, out, self.kernel_size, **geometry)

    def to_dense(self) -> nn.Module:
        return self.filled(self._convolution(self.out_channels, bias=self.bias is not None))


class ConvKind(LayerKind):
    """`torch.nn.Conv1d`, `Conv2d`, `Conv3d`, and timm's ``Conv2dSame``.

    Args:
        name: as in reports.
        like: class of the first of the two convolutions.
    """

    channel_axis = 1

    def __init__(self, name: str, like: type[nn.Module]) -> None:
        self.name, self.like = name, like

    def matrix(self, module: nn.Module) -> Float[Tensor, "out d"]:
        assert isinstance(module.weight, Tensor)
        return module.weight.detach().flatten(1)

    def low_rank(self, module: nn.Module, rank: int) -> LowRank:
        weight = module.weight
        assert isinstance(weight, Tensor)
        return LowRankConv(module, rank, self.like).to(weight.device, weight.dtype)
