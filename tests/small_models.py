"""Small timm models: arguments, names, whether two compute the same; a network with images for it, one that routes."""

import torch
from torch import Tensor, nn

SMALL = {"num_classes": 10, "in_chans": 1}
FAMILIES = ["test_resnet", "test_vit", "test_efficientnet", "test_convnext", "test_byobnet", "test_nfnet"]


def same(a: nn.Module, b: nn.Module, *size: int) -> bool:
    example = torch.randn(2, *size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return torch.equal(a(example), b(example))


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 9, 32),
        nn.ReLU(),
        nn.Linear(32, 4),
    ).eval()


def batches(count: int = 9, size: int = 6) -> list[Tensor]:
    return list(torch.randn(count * size, 1, 8, 8, generator=torch.Generator().manual_seed(0)).split(size))


class Experts(nn.Module):
    """Each sample goes to one expert; an expert without samples does not run."""

    def __init__(self, experts: int, width: int) -> None:
        super().__init__()
        self.first, self.gate, self.last = nn.Linear(8, 16), nn.Linear(16, experts), nn.Linear(16, 5)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 16)) for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).relu()
        scores = self.gate(h).softmax(-1)
        chosen, out = scores.argmax(-1), h
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero()[:, 0]
            if len(rows):
                out = out.index_add(0, rows, expert(h[rows]) * scores[rows, number, None])
        return self.last(out)
