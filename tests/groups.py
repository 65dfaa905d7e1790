"""Networks of grouped convolutions, and the same with a layer for each group."""

import copy

import pytest
import torch
from torch import Tensor, nn

from hypercompress.inspection import inspect
from hypercompress.specs import (
    LayerSpec,
    ModelSpec,
    Side,
    Status,
)
from tests.strategies import random


class Network(nn.Module):
    """A grouped convolution between two plain ones; or (``apart``) its groups as convolutions of their own."""

    def __init__(self, channels: tuple[int, int], kernel: int, *, bias: bool = True, norm: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, channels[0], 3, padding=1)
        self.stem_norm = nn.BatchNorm2d(channels[0])
        self.conv: nn.Module = nn.Conv2d(*channels, kernel, padding=kernel // 2, groups=4, bias=bias)
        self.norm = nn.BatchNorm2d(channels[1]) if norm else nn.Identity()
        self.head = nn.Linear(channels[1], 6)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.data.uniform_(0.5, 2)
                for tensor in (module.bias, module.running_mean):
                    tensor.data.uniform_(-0.5, 0.5)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.norm(self.conv(self.stem_norm(self.stem(x)).relu())).tanh().mean((2, 3)))
        return output


class Apart(nn.ModuleList):
    """The groups of a convolution as convolutions of their own."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        inside, outside = conv.in_channels // conv.groups, conv.out_channels // conv.groups
        for group in range(conv.groups):
            part = nn.Conv2d(inside, outside, conv.kernel_size, padding=conv.padding, bias=conv.bias is not None)
            part.weight.data = conv.weight.data.chunk(conv.groups)[group].clone()
            if conv.bias is not None:
                part.bias.data = conv.bias.data.chunk(conv.groups)[group].clone()
            self.append(part)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([part(x_j) for part, x_j in zip(self, x.chunk(len(self), 1), strict=True)], 1)


def apart(model: Network) -> Network:
    model = copy.deepcopy(model)
    assert isinstance(model.conv, nn.Conv2d)
    model.conv = Apart(model.conv)
    return model.eval()


def images(count: int = 24) -> Tensor:
    return random(count, 3, 6, 6) + 0.2


def network(side: str, kernel: int, **options: bool) -> Network:
    """One whose grouped matrices are narrow or wide."""
    model = Network((24, 20) if side == "output" else (16, 16 * kernel**2 + 12), kernel, **options)
    layer = conv_of(inspect(model, images(2).double()))
    assert (layer.status, layer.side, layer.groups) == (Status.FACTORED, Side(side), 4)
    return model


def conv_of(spec: ModelSpec) -> LayerSpec:
    (layer,) = (layer for layer in spec.layers if layer.name == "conv")
    return layer


CASES = pytest.mark.parametrize(("side", "kernel"), [("output", 3), ("output", 1), ("input", 3), ("input", 1)])
