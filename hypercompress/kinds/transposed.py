"""Transposed convolutions of one, two and three dimensions, factored on their outputs.

The weight [c, out, *kernel] is read as the matrix [out, c * taps], which gives an output from what of the input reaches
it: zero at the taps that fall between the inputs where there is a stride. The low-rank twin is a transposed
convolution to r channels, then a pointwise convolution. The first runs at the positions of the input, the second at
those of the output, of which there are more, so a rank can save parameters and no multiply-accumulates.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hypercompress.kinds.conv import POINTWISE, convolved_axis
from hypercompress.kinds.low_rank import LowRank, matrix, weight_of
from hypercompress.kinds.product import product_of
from hypercompress.kinds.protocol import LayerKind


class LowRankTransposed(LowRank):
    """A transposed convolution to r channels, then a convolution with kernel 1 to ``out``.

    Args:
        dense: what it stands in for; only its geometry is read, channels and kernel from its weight (`LowRankConv`).
        rank: number of channels between.
        like: class of the first.

    Shape: as the layer that it replaces, at its default output size.
    """

    transposed = True  # how `weight` is laid out, as torch says it of its own

    def __init__(self, dense: Any, rank: int, like: type[nn.Module]) -> None:
        self.like, (inside, out, *kernel) = like, weight_of(dense).shape
        self.in_channels, self.out_channels, self.kernel_size = inside, out, tuple(kernel)
        self.stride, self.padding, self.output_padding = dense.stride, dense.padding, dense.output_padding
        self.dilation, self.groups = dense.dilation, 1
        expand = POINTWISE[len(kernel)](rank, out, 1, bias=dense.bias is not None)
        super().__init__(self.kernel(rank, bias=False), expand, rank)

    def kernel(self, out: int, *, bias: bool) -> nn.Module:
        """A transposed convolution of the same geometry to other channels."""
        names = ("stride", "padding", "output_padding", "dilation")
        geometry: dict[str, Any] = {name: getattr(self, name) for name in names}
        return self.like(self.in_channels, out, self.kernel_size, bias=bias, **geometry)

    @property
    def weight(self) -> Tensor:
        """The product, in the dense layer's shape [c, out, *kernel]; made when it is used."""
        expand, reduce = weight_of(self.expand), weight_of(self.reduce)
        shape = torch.Size((reduce.shape[0], expand.shape[0], *reduce.shape[2:]))
        return product_of(joined, (expand, reduce), shape)

    def to_dense(self) -> nn.Module:
        return self.filled(self.kernel(self.out_channels, bias=self.bias is not None))


def joined(expand: Tensor, reduce: Tensor) -> Tensor:
    """One weight [c, out, *kernel] for a transposed convolution and a pointwise one behind it."""
    return torch.einsum("or,cr...->co...", expand.flatten(1), reduce)


class TransposedKind(LayerKind):
    """`torch.nn.ConvTranspose1d`, `ConvTranspose2d`, `ConvTranspose3d`.

    Args:
        name: as in reports.
        like: class of the first of the two layers of the twin.
    """

    channel_axis = 1
    spreads = True

    def __init__(self, name: str, like: type[nn.Module]) -> None:
        self.name, self.like = name, like

    def axis_of(self, y: Tensor) -> int:
        return convolved_axis(self.like, y)

    def matrix(self, module: nn.Module) -> Float[Tensor, "out d"]:
        return matrix(module).detach()

    def low_rank(self, module: nn.Module, rank: int, input_rank: int | None = None) -> LowRank:  # noqa: ARG002
        weight = weight_of(module)
        return LowRankTransposed(module, rank, self.like).to(weight.device, weight.dtype)

    def strided(self, module: nn.Module) -> bool:  # noqa: ARG002
        return False  # a stride makes more outputs, not fewer
