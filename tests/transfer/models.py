"""Models that are adapted."""

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import nn

Make = Callable[..., Any]


def model_of(name: str = "test_resnet", **given: Any) -> nn.Module:
    torch.manual_seed(1)
    return timm.create_model(name, **{"in_chans": 1, "num_classes": 7, **given}).eval()
