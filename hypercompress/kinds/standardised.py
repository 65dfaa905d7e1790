"""timm's weight-standardised convolutions (BiT, NFNet): the weight that each pass computes is what is factored.

The student has plain convolutions there: a product of factors has no norm of its own to be standardised.
Qiao et al. 2019, arXiv 1903.10520; Brock et al. 2021, arXiv 2101.08692.
"""

from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.std_conv import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn

from hypercompress.kinds.conv import ConvKind, LowRankTimmConv
from hypercompress.kinds.groups import stacked
from hypercompress.kinds.low_rank import LowRank, weight_of
from hypercompress.kinds.registry import PLAIN, register_kind


class StandardisedConvKind(ConvKind):
    """A convolution that standardises its weight over each output's inputs, and may scale it by a gain."""

    parts = PLAIN | {"gain"}

    def __init__(self) -> None:
        super().__init__("std_conv2d", nn.Conv2d)

    def matrix(self, module: nn.Module) -> Float[Tensor, "*g o d"]:
        conv: Any = module
        weight = conv.weight.detach().flatten(1)
        gain = (conv.gain.detach() * conv.scale).flatten() if hasattr(conv, "gain") else None
        options = {"weight": gain, "training": True, "momentum": 0.0, "eps": conv.eps}
        return stacked(F.batch_norm(weight[None], None, None, **options)[0], self.groups(module))

    def low_rank(self, module: nn.Module, rank: int, input_rank: int | None = None) -> LowRank:
        like = Conv2dSame if getattr(module, "same_pad", False) else nn.Conv2d
        weight = weight_of(module)
        layer = LowRankTimmConv(module, rank, like, input_rank).to(weight.device, weight.dtype)
        layer.restores_class = False
        return layer


for module_class in (StdConv2d, StdConv2dSame, ScaledStdConv2d, ScaledStdConv2dSame):
    register_kind(module_class, StandardisedConvKind())
