"""Small backbones and tasks for the tests of fast transfer."""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor

from hypercompress.transfer.adaptable import Site, adaptable
from hypercompress.transfer.backbone import Backbone
from hypercompress.transfer.network import TransferNetwork

Labelled = tuple[Tensor, Tensor]


def task(ways: int = 3, shots: int = 4, size: tuple[int, int, int] = (1, 32, 32)) -> Labelled:
    """Noisy copies of one random image a class."""
    labels = torch.arange(ways * shots) % ways
    means = torch.randn(ways, *size)
    return means[labels] + torch.randn(len(labels), *size), labels


def backbone_of(name: str = "test_resnet", classes: int = 3) -> tuple[Backbone, tuple[Site, ...]]:
    """A frozen grey timm backbone with random weights, and its sites."""
    model = timm.create_model(name, num_classes=classes, in_chans=1).eval().requires_grad_(False)
    for module in model.modules():  # random weights give channels of variance far from 1
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_var is not None
            module.running_var.uniform_(0.2, 2)
    backbone = Backbone(model)
    return backbone, adaptable(model, backbone.classifier).sites


@pytest.fixture
def trained() -> Callable[..., TransferNetwork]:
    """A network that changes something: its last layers are no longer zero."""

    def make(scale: float = 0.3) -> TransferNetwork:
        network = TransferNetwork()
        with torch.no_grad():
            for last in (network.changes, network.mix):
                last.weight.normal_(0, scale)
                last.bias.normal_(0, scale)
        return network.eval()

    return make


@pytest.fixture
def make_task() -> Callable[..., Labelled]:
    """`task`."""
    return task


@pytest.fixture
def make_backbone() -> Callable[..., tuple[Backbone, tuple[Site, ...]]]:
    """`backbone_of`."""
    return backbone_of
