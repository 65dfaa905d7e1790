"""A teacher, images and a hypernetwork small enough for meta-training in a test."""

import torch
from torch import Tensor, nn

from hypercompress.generator import HypernetConfig, Hypernetwork


def images(count: int = 4, size: int = 16, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return list((torch.randn(count * size, 3, 8, 8, generator=generator) + 0.2).split(size))


def teacher() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(inplace=True),
        nn.Conv2d(12, 16, 3, stride=2),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(16 * 9, 24),
        nn.ReLU(inplace=True),
        nn.Linear(24, 5),
    )
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data = torch.randn(parameter.shape, generator=generator) * (2.5 / parameter[0].numel()) ** 0.5
    model[1].running_var.uniform_(0.5, 1.5)
    return model


def small(noise: float = 0.0) -> Hypernetwork:
    network = Hypernetwork(HypernetConfig(width=16, depth=1, heads=2))
    generator = torch.Generator().manual_seed(3)
    for parameter in network.parameters():
        parameter.data += noise * torch.randn(parameter.shape, generator=generator)
    return network
