"""A network whose student is reconstructed, and its student."""

from typing import Any

import torch
from torch import Tensor, nn

from hypercompress.generator import ANALYTIC
from hypercompress.inspection import inspect
from hypercompress.sketch import sketch
from hypercompress.specs import Budget, ModelSpec
from hypercompress.student import Student, build_student


def network() -> nn.Module:
    """Every way to take an intercept: BatchNorm, bias, none; two layers after the first so that errors add up."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 24, 5, padding=2, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 16, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 9, 24, bias=False),
        nn.ReLU(),
        nn.Linear(24, 5),
    )
    with torch.no_grad():
        model[1].running_mean.uniform_(-1, 1)
        model[1].running_var.uniform_(0.5, 2)
        model[1].weight.uniform_(0.5, 1.5)
        model[1].bias.uniform_(-0.5, 0.5)
    return model.double().eval()


def images(count: int = 96, seed: int = 1) -> Tensor:
    return torch.randn(count, 2, 8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.3


def made(teacher: nn.Module, x: Tensor, share: float, name: str = "kfac") -> tuple[ModelSpec, Any, Student]:
    spec = inspect(teacher, x[:2])
    sketches = sketch(teacher, spec, x.split(32))
    return spec, sketches, build_student(teacher, spec, ANALYTIC[name].generate(spec, sketches, Budget(params=share)))
