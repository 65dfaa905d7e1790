"""Networks of layers that hold one weight."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


class Decoders(nn.Module):
    """An autoencoder with two decoders on one weight, each with a bias of its own; the later one is called first."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(30, 16)
        self.late, self.early = nn.Linear(16, 30), nn.Linear(16, 30)
        self.late.weight = self.early.weight
        self.head = nn.Linear(60, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.encode(x).tanh()
        logits: Tensor = self.head(torch.cat([self.early(h), self.late(h.flip(-1).relu())], -1).tanh())
        return logits


class Dilated(nn.Module):
    """One kernel at three dilations (TridentNet), and a Linear on top."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.branches = nn.ModuleList(nn.Conv2d(12, 20, 3, padding=d, dilation=d, stride=d) for d in (1, 2, 3))
        for branch in self.branches[1:]:
            branch.weight = self.branches[0].weight
        self.head = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        logits: Tensor = self.head(sum(branch(x).relu().mean((2, 3)) for branch in self.branches))
        return logits


Make = Callable[[], nn.Module]
NETWORKS: dict[type[nn.Module], tuple[tuple[int, ...], str, tuple[str, ...]]] = {
    Decoders: ((30,), "early", ("late",)),
    Dilated: ((3, 9, 9), "branches.0", ("branches.1", "branches.2")),
}


def made(make: Make) -> nn.Module:
    torch.manual_seed(0)
    return make().double().eval()


def inputs(make: Make, count: int = 48) -> Tensor:
    size = NETWORKS[make][0]  # type: ignore[index]
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.3
