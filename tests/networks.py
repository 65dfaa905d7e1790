"""Small networks and inputs in float64, the same each time."""

import torch
from torch import Tensor, nn


class Net(nn.Sequential):
    """A sequence in float64 with seeded weights."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__(*modules)
        generator = torch.Generator().manual_seed(1)
        self.double()
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.4


def images(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 0.2
