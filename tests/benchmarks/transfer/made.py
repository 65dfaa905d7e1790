"""A backbone with random weights, and the size of its episodes."""

import torch
from torch import nn

from hypercompress.architecture import load_timm

SHOTS, QUERIES = 3, 10


def made(name: str, **args: object) -> nn.Module:
    torch.manual_seed(0)
    model, _ = load_timm(
        name,
        model_args={"in_chans": 1, "num_classes": 7, **args},
        pretrained=False,
        pretrained_cfg={"input_size": [1, 32, 32], "mean": [0.3], "std": [0.3], "crop_pct": 1.0},
    )
    for parameter in model.parameters():  # zero-initialised norms would hide their branches
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    return model
