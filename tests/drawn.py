"""Layers of every kind at random, each with an input that fits."""

from typing import Any

import hypothesis.strategies as st
import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.linear import Linear as TimmLinear
from timm.layers.std_conv import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn

from hypercompress.kinds import kind_of

SAME_CONVS: dict[type[nn.Module], dict[str, Any]] = {Conv2dSame: {}, StdConv2dSame: {}, ScaledStdConv2dSame: {}}


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A convolution of one to three dimensions, of any geometry torch allows, with an input that fits."""
    dims = draw(st.integers(1, 3))
    each = st.tuples(*[st.integers(1, 3)] * dims)
    kernel, dilation = draw(each), draw(st.tuples(*[st.integers(1, 2)] * dims))
    mode = draw(st.sampled_from(["zeros", "replicate", "circular"] + ["reflect"] * (dims < 3)))
    padding = draw(st.one_of(st.just("same"), st.just("valid"), st.tuples(*[st.integers(0, 2)] * dims)))
    stride = (1,) * dims if padding == "same" else draw(each)
    channels = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims](
        *channels, kernel, stride, padding, dilation, bias=draw(st.booleans()), padding_mode=mode, dtype=torch.float64
    )
    return conv, random(2, channels[0], *(draw(st.integers(7, 9)) for _ in range(dims)))


@st.composite
def timm_convolutions(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """timm's own: standardised weights, padding by the size of the input."""
    module_class = draw(st.sampled_from([*SAME_CONVS, StdConv2d, ScaledStdConv2d]))
    channels, kernel = (draw(st.integers(2, 4)), draw(st.integers(1, 5))), draw(st.integers(1, 3))  # 1 has no variance
    options = {"stride": draw(st.integers(1, 3)), "dilation": draw(st.integers(1, 2)), "bias": draw(st.booleans())}
    conv = module_class(*channels, kernel, **options).double()
    if hasattr(conv, "gain"):
        conv.gain.data = random(*conv.gain.shape)
    return conv, random(2, channels[0], draw(st.integers(7, 9)), draw(st.integers(7, 9)))


@st.composite
def linears(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    inside, outside, lead = (
        draw(st.integers(1, 12)),
        draw(st.integers(1, 12)),
        draw(st.lists(st.integers(1, 3), max_size=3)),
    )
    module_class = draw(st.sampled_from([nn.Linear, TimmLinear]))
    dense = module_class(inside, outside, bias=draw(st.booleans()), dtype=torch.float64)
    return dense, random(*lead, inside)


@st.composite
def transposed(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A transposed convolution of one to three dimensions, of any geometry torch allows, with an input that fits."""
    dims = draw(st.integers(1, 3))
    each = st.tuples(*[st.integers(1, 3)] * dims)
    kernel, stride, dilation = draw(each), draw(each), draw(st.tuples(*[st.integers(1, 2)] * dims))
    padding = draw(st.tuples(*[st.integers(0, 2)] * dims))
    added = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    channels, bias = (draw(st.integers(1, 4)), draw(st.integers(1, 5))), draw(st.booleans())
    conv = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[dims](
        *channels, kernel, stride, padding, added, bias=bias, dilation=dilation, dtype=torch.float64
    )
    return conv, random(2, channels[0], *(draw(st.integers(5, 6)) for _ in range(dims)))


KINDS = {"conv": convolutions(), "timm": timm_convolutions(), "linear": linears(), "transposed": transposed()}


def matrix(dense: nn.Module) -> Tensor:
    kind = kind_of(dense)
    assert kind is not None
    return kind.matrix(dense)
