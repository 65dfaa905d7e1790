"""A trained network: the KL that curvature predicts against measurements."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypercompress.allocation import allocate
from hypercompress.data.embedded import fashion_mnist_mini
from hypercompress.errors import BudgetError
from hypercompress.fidelity import compare
from hypercompress.generator import ANALYTIC
from hypercompress.inspection import inspect
from hypercompress.sketch import sketch
from hypercompress.specs import Budget
from hypercompress.student import build_student
from tests.explicit import network
from tests.networks import images


def to_tensor(source: Any, count: int) -> tuple[Tensor, Tensor]:
    pixels = torch.from_numpy(source.images[:count]).float()[:, None] / 255
    return (pixels - 0.286) / 0.353, torch.from_numpy(source.labels[:count].astype(np.int64))


def train(model: nn.Module, steps: int = 100) -> nn.Module:
    x, y = to_tensor(fashion_mnist_mini(train=True), 4096)
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(steps):
        pick = torch.randint(len(x), (64,), generator=generator)
        optimiser.zero_grad()
        F.cross_entropy(model.train()(x[pick]), y[pick]).backward()
        optimiser.step()
    return model.eval()


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(32, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Linear(288, 48),
        nn.ReLU(inplace=True),
        nn.Linear(48, 10),
    )


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 96), nn.ReLU(), nn.Linear(96, 96), nn.GELU(), nn.Linear(96, 10))


UNCORRELATED = (
    "the Fisher sums over positions as if their gradients were uncorrelated (Grosse & Martens 2016, sec. 3.2); ahead "
    "of average pooling they are not, and the KL of convolutions is predicted several times too small"
)


@pytest.mark.parametrize("build", [pytest.param(convnet, marks=pytest.mark.xfail(reason=UNCORRELATED)), mlp])
def test_predicted_kl_is_the_measured_one_within_a_factor_of_two(build: Callable[[], nn.Module]) -> None:
    teacher = train(build())
    x, _ = to_tensor(fashion_mnist_mini(train=True), 2048)
    held_out, _ = to_tensor(fashion_mnist_mini(train=False), 1024)
    spec = inspect(teacher, x[:2])
    sketches = sketch(teacher, spec, x.split(256))
    compared = []
    for share in (0.11, 0.13, 0.16, 0.2, 0.3, 0.4, 0.5, 0.6):
        try:
            generation = ANALYTIC["kfac"].generate(spec, sketches, Budget(params=share))
        except BudgetError:
            continue
        predicted = generation.plan.predicted_kl
        assert predicted is not None
        actual = compare(teacher, build_student(teacher, spec, generation), held_out.split(256)).kl
        if predicted > 1e-4 and actual < 0.1:
            compared.append((share, predicted, actual))
    assert len(compared) >= 3
    assert all(0.5 < predicted / actual < 2 for _, predicted, actual in compared), compared


def test_kfac_beats_whitened_beats_plain_svd() -> None:
    teacher = train(mlp())
    x, _ = to_tensor(fashion_mnist_mini(train=True), 2048)
    held_out, _ = to_tensor(fashion_mnist_mini(train=False), 1024)
    spec = inspect(teacher, x[:2])
    sketches = sketch(teacher, spec, x.split(256))
    kl = {}
    for name in ("svd", "whitened", "kfac"):
        student = build_student(teacher, spec, ANALYTIC[name].generate(spec, sketches, Budget(params=0.1)))
        kl[name] = compare(teacher, student, held_out.split(256)).kl
    assert kl["kfac"] < kl["whitened"] < kl["svd"]


def test_energies_and_plan_agree_on_the_prediction() -> None:
    model, x = network(inplace=True).eval(), images(8, 2, 6, 6)
    spec = inspect(model, x)
    sketches = sketch(model, spec, [x])
    known = ANALYTIC["kfac"].directions(spec, sketches)
    energies, inputs = (ANALYTIC["kfac"].energies(part) for part in (known.outputs, known.inputs))
    plan = allocate(spec, energies, Budget(params=0.8), nats=True, inputs=inputs)
    lost = sum(float(energies[name][rank:].sum()) for name, rank in plan.ranks.items())
    lost += sum(float(inputs[name][rank:].sum()) for name, rank in plan.input_ranks.items())
    assert plan.predicted_kl == pytest.approx(lost / 2)
