"""Small networks and students of them."""

from typing import Any

import timm
import torch
from torch import Tensor, nn

import hypercompress
from hypercompress.architecture import architecture_of
from hypercompress.generator import ANALYTIC
from hypercompress.inspection import inspect
from hypercompress.sketch import sketch
from hypercompress.specs import Budget
from hypercompress.student import Student, build_student

SMALL: dict[str, Any] = {"num_classes": 7, "in_chans": 1}


class Custom(nn.Module):
    """A network that timm cannot build, with tied weights and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding="same", padding_mode="circular")
        self.fc = nn.Linear(12 * 16, 24)
        self.inside, self.outside = nn.Linear(24, 24), nn.Linear(24, 24)
        self.outside.weight = self.inside.weight
        self.head = nn.Linear(24, 7)
        self.register_buffer("scale", torch.tensor([2.0]))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.adaptive_avg_pool2d(self.stem(x).tanh(), 4).flatten(1)
        return self.head(self.outside(self.inside(self.fc(x)).tanh())) * self.scale


def images(count: int = 3) -> Tensor:
    return torch.randn(count, 1, 32, 32, generator=torch.Generator().manual_seed(0))


def randomised(model: nn.Module) -> nn.Module:
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point():
            tensor.data += 0.05 * torch.rand(tensor.shape)
    return model.eval()


def compressed(model: nn.Module, share: float = 0.6) -> Student:
    spec = inspect(model, images())
    generation = ANALYTIC["svd"].generate(spec, sketch(model, spec, None), Budget(params=share))
    return build_student(model, spec, generation, architecture_of(model))


def vit_student() -> Student:
    torch.manual_seed(0)
    teacher = timm.create_model("test_vit", num_classes=10).eval()
    return hypercompress.compress(teacher, Budget(params=0.5), generator="svd")
