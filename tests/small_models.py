"""Arguments and names of small timm models, and whether two compute the same."""

import torch
from torch import nn

SMALL = {"num_classes": 10, "in_chans": 1}
FAMILIES = ["test_resnet", "test_vit", "test_efficientnet", "test_convnext", "test_byobnet", "test_nfnet"]


def same(a: nn.Module, b: nn.Module, *size: int) -> bool:
    example = torch.randn(2, *size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return torch.equal(a(example), b(example))
