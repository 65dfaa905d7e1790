"""Convolutions of one, two and three dimensions, factored on one side or on both.

One side (channel factorization): a full kernel to r channels, then a pointwise convolution. Both sides (Tucker-2, Kim
et al. 2016, arXiv 1511.06530): a pointwise convolution to q channels, the kernel from q to r, a pointwise one.
A convolution of g groups is factored on one side, group by group: both convolutions have g groups of r channels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from hypercompress.kinds.groups import by_group, stacked
from hypercompress.kinds.low_rank import LowRank, Projected, weight_of
from hypercompress.kinds.protocol import LayerKind

POINTWISE: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SPREADING = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


class LowRankConv(LowRank):
    """A convolution to r channels a group, then one with kernel 1 to ``out``.

    Stride, padding, dilation and padding mode belong to the first; with an input rank, to the second of three. Padding
    and a convolution with kernel 1 and no bias commute, whatever the padding mode.

    Args:
        dense: what it stands in for; only its geometry is read. Its channels and its kernel are those of its weight, as
            torch runs it: who gives a layer another weight may leave ``in_channels`` and the like as they were.
        rank: number of channels between, in each group.
        like: class of the convolution with the kernel; ``Conv2dSame`` pads by the size of each input.
        input_rank: channels that the input is projected to first; of a single group only.

    Shape: as the convolution that it replaces.
    """

    def __init__(self, dense: Any, rank: int, like: type[nn.Module], input_rank: int | None = None) -> None:
        self.like, (out, inside, *kernel) = like, weight_of(dense).shape
        self.in_channels, self.out_channels, self.kernel_size = inside * dense.groups, out, tuple(kernel)
        self.stride, self.padding, self.padding_mode = dense.stride, dense.padding, dense.padding_mode
        self.dilation, self.groups = dense.dilation, dense.groups
        pointwise, between = POINTWISE[len(kernel)], rank * self.groups
        reduce = self.kernel(input_rank or self.in_channels, between, bias=False)
        if input_rank is not None:
            reduce = Projected(pointwise(self.in_channels, input_rank, 1, bias=False), reduce)
        expand = pointwise(between, out, 1, groups=self.groups, bias=dense.bias is not None)
        super().__init__(reduce, expand, rank)

    def kernel(self, inside: int, out: int, *, bias: bool, groups: int | None = None) -> nn.Module:
        """A convolution of the same geometry over other channels, in as many groups if no other number is given."""
        geometry: dict[str, Any] = {"stride": self.stride, "dilation": self.dilation, "bias": bias}
        geometry["groups"] = self.groups if groups is None else groups
        if self.like is not Conv2dSame:
            geometry |= {"padding": self.padding, "padding_mode": self.padding_mode}
        return self.like(inside, out, self.kernel_size, **geometry)

    def to_dense(self) -> nn.Module:
        return self.filled(self.kernel(self.in_channels, self.out_channels, bias=self.bias is not None))


class LowRankTimmConv(LowRankConv):
    """The twin of a convolution of timm's, which calls its input ``x``: a model may pass it by that name."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.expand(self.reduce(x))
        return y


def convolved_axis(like: type[nn.Module], y: Tensor) -> int:
    """The axis of the channels in what a convolution of this class reads or gives."""
    dims = next((dims for dims in POINTWISE if issubclass(like, (POINTWISE[dims], SPREADING[dims]))), 0)
    return 0 if y.ndim == dims + 1 else 1


class ConvKind(LayerKind):
    """`torch.nn.Conv1d`, `Conv2d`, `Conv3d`, and timm's ``Conv2dSame``.

    Args:
        name: as in reports.
        like: class of the first of the two convolutions.
    """

    channel_axis = 1

    def __init__(self, name: str, like: type[nn.Module]) -> None:
        self.name, self.like = name, like

    def axis_of(self, y: Tensor) -> int:
        return convolved_axis(self.like, y)

    def matrix(self, module: nn.Module) -> Float[Tensor, "*g o d"]:
        return stacked(weight_of(module).detach().flatten(1), self.groups(module))

    def groups(self, module: nn.Module) -> int:
        groups: Any = module.groups
        return int(groups)

    def low_rank(self, module: nn.Module, rank: int, input_rank: int | None = None) -> LowRank:
        weight = weight_of(module)
        twin = LowRankTimmConv if self.like is Conv2dSame else LowRankConv
        return twin(module, rank, self.like, input_rank).to(weight.device, weight.dtype)

    def input_channels(self, module: nn.Module, x: Tensor) -> Float[Tensor, "n c"]:  # noqa: ARG002
        return self.rows(x)

    def input_rows(self, module: nn.Module, x: Tensor) -> Float[Tensor, "*g n d"]:
        """By torch's own unfolding where it knows the geometry: no product with an identity of d columns."""
        if type(module) is not nn.Conv2d or isinstance(module.padding, str) or module.padding_mode != "zeros":
            return super().input_rows(module, x)
        kernel = weight_of(module).shape[2:]
        rows = F.unfold(self.batched(x), kernel, module.dilation, module.padding, module.stride)
        return by_group(rows.mT.flatten(0, 1), module.groups)

    def input_mean(self, module: nn.Module, x: Tensor) -> Float[Tensor, "*g d"]:
        """Channel by channel, so that no matrix of d columns is ever formed."""
        taps = self.taps(module)
        with torch.random.fork_rng(devices=[]):  # without a lock: hooks come here, in whichever thread
            reduce = self.low_rank(module, 1)
            assert isinstance(reduce, LowRankConv)
            patches = reduce.kernel(1, taps, bias=False, groups=1).to(x.device, x.dtype)
        weight = weight_of(patches)
        with torch.no_grad():
            weight.copy_(torch.eye(taps, dtype=x.dtype, device=x.device).reshape(weight.shape))
            seen: Tensor = patches(self.batched(x).mean(0)[:, None])
        return stacked(seen.flatten(2).mean(2), self.groups(module)).flatten(-2)
