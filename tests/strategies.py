"""Layers at random that several tests draw."""

import hypothesis.strategies as st
import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.std_conv import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape) + seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@st.composite
def grouped(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A convolution of several groups, of any geometry torch or timm allows, with an input that fits."""
    groups, inside, outside = draw(st.integers(2, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    channels, bias = (groups * inside, groups * outside), draw(st.booleans())
    timms = draw(st.sampled_from([None, Conv2dSame, StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame]))
    if timms is not None:
        options = {"stride": draw(st.integers(1, 2)), "dilation": draw(st.integers(1, 2)), "bias": bias}
        conv = timms(*channels, 3, groups=groups, **options).double()
        if hasattr(conv, "gain"):
            conv.gain.data = random(*conv.gain.shape)
        return conv, random(2, channels[0], draw(st.integers(7, 9)), draw(st.integers(7, 9)))
    dims = draw(st.integers(1, 3))
    each = st.tuples(*[st.integers(1, 3)] * dims)
    mode = draw(st.sampled_from(["zeros", "replicate", "circular"] + ["reflect"] * (dims < 3)))
    padding = draw(st.one_of(st.just("same"), st.just("valid"), st.tuples(*[st.integers(0, 2)] * dims)))
    stride = (1,) * dims if padding == "same" else draw(each)
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims](
        *channels,
        draw(each),
        stride,
        padding,
        draw(st.tuples(*[st.integers(1, 2)] * dims)),
        groups,
        bias,
        mode,
        dtype=torch.float64,
    )
    return conv, random(2, channels[0], *(draw(st.integers(7, 9)) for _ in range(dims)))
