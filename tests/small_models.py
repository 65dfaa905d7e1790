"""Arguments and names of small timm models, whether two compute the same, and a network with images for it."""

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
