"""A network and images small enough for benchmark programs in seconds."""

import pytest
import torch
from torch import nn

from benchmarks.shared.common import Set, read_set
from hypercompress.architecture import Architecture, load_timm


@pytest.fixture(scope="module")
def network() -> tuple[nn.Module, Architecture]:
    torch.manual_seed(0)
    model, architecture = load_timm(
        "test_resnet",
        model_args={"in_chans": 1, "num_classes": 10},
        pretrained=False,
        pretrained_cfg={"input_size": [1, 28, 28], "mean": [0.286], "std": [0.353], "crop_pct": 1.0},
    )
    return model, architecture


@pytest.fixture(scope="module")
def images(network: tuple[nn.Module, Architecture]) -> Set:
    return read_set(network[0], "fashion_mnist_mini", train=True, limit=96)
