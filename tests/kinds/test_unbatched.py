"""Convolutions take an input without an axis of samples: it is read as a batch of one."""

from collections.abc import Callable

import pytest
import torch
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.std_conv import ScaledStdConv2dSame, StdConv2d
from torch import Tensor, nn

from hypercompress.generator import ANALYTIC
from hypercompress.inspection import inspect
from hypercompress.kinds import factors_of, kind_of, low_rank_like
from hypercompress.reconstruction import reconstruct
from hypercompress.sketch import sketch
from hypercompress.specs import Budget
from hypercompress.student import build_student

LAYERS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1), 1),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, stride=2), 2),
    "replicated": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="replicate"), 2),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), 2),
    "conv3d": (lambda: nn.Conv3d(4, 6, 3, padding=1), 3),
    "same": (lambda: Conv2dSame(4, 6, 3, stride=2), 2),
    "standardised": (lambda: StdConv2d(4, 6, 3), 2),
    "standardised, same": (lambda: ScaledStdConv2dSame(4, 6, 3), 2),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2), 2),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 3), 1),
    "linear": (lambda: nn.Linear(5, 6), -1),
}


@pytest.mark.parametrize("name", LAYERS)
@torch.no_grad()
def test_rows_are_those_of_a_batch_of_one(name: str) -> None:
    torch.manual_seed(0)
    layer, x = LAYERS[name][0](), torch.randn(4, 5, 5, 5)
    for _ in range(3 - LAYERS[name][1]):
        x = x[..., 0] if LAYERS[name][1] > 0 else x.flatten()[:5]
    kind, batch = kind_of(layer), x[None]
    assert kind is not None
    torch.testing.assert_close(kind.rows(layer(x)), kind.rows(layer(batch)))
    torch.testing.assert_close(kind.input_rows(layer, x), kind.input_rows(layer, batch))
    torch.testing.assert_close(kind.input_mean(layer, x), kind.input_mean(layer, batch))
    assert kind.batched(x).shape == batch.shape
    assert kind.batched(batch) is batch
    if (channels := kind.input_channels(layer, batch)) is not None:
        torch.testing.assert_close(kind.input_channels(layer, x), channels)


class Network(nn.Module):
    """Convolutions and one that runs on a table of positions; image by image, or on the whole batch."""

    def __init__(self, single: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.single, self.table = single, nn.Parameter(torch.randn(8, 6, 6))
        self.place, self.first = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(3, 16, 3, padding=1)
        self.second, self.last = nn.Conv2d(16, 24, 3, bias=False), nn.Linear(24, 5)

    def seen(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu()).relu()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.place(self.table if self.single else self.table[None]).mean()
        maps = torch.stack([self.seen(image) for image in x]) if self.single else self.seen(x)
        return self.last(maps.mean((2, 3)))


def test_a_model_that_runs_image_by_image_has_the_curvature_of_one_that_runs_the_batch() -> None:
    data = list(torch.randn(4, 8, 3, 6, 6, generator=torch.Generator().manual_seed(0)).unbind())
    found = []
    for single in (True, False):
        model = Network(single).eval()
        found.append(sketch(model, inspect(Network(False).eval(), data[0]), data))
    for name, one in found[0].items():
        other = found[1][name]
        for part in ("signal", "fisher", "mean"):
            torch.testing.assert_close(
                getattr(one.curvature, part), getattr(other.curvature, part), rtol=1e-3, atol=1e-5
            )


class Table(nn.Module):
    """Adds what a convolution makes of a table."""

    def __init__(self, single: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.single, self.table = single, torch.randn(4, 24, 24, dtype=torch.float64)
        self.place, self.last = nn.Conv2d(4, 12, 3), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.place(self.table if self.single else self.table[None])
        return self.last(x + maps.movedim(-3, -1).tanh().mean((-3, -2)))


def test_a_refit_on_a_table_is_that_on_a_batch_of_one() -> None:
    x, found = torch.randn(64, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), []
    for single in (True, False):
        teacher = Table(single).double().eval()
        spec = inspect(Table(False).double().eval(), x)
        sketches = sketch(teacher, spec, x.split(16))
        student = build_student(teacher, spec, ANALYTIC["kfac"].generate(spec, sketches, Budget(params=0.6)))
        fitted = reconstruct(teacher, student, spec, sketches, x)
        assert fitted["place"] == "both"
        found.append(factors_of(student.model.place).product())
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("make", [Conv2dSame, StdConv2d, ScaledStdConv2dSame])
def test_twins_of_timm_s_convolutions_take_their_input_by_its_name(make: type[nn.Module]) -> None:
    twin, x = low_rank_like(make(4, 6, 3), 2), torch.randn(2, 4, 5, 5)
    assert torch.equal(twin(x=x), twin(x))


def test_the_twin_of_a_plain_convolution_takes_its_input_by_its_name() -> None:
    twin, x = low_rank_like(nn.Conv2d(4, 6, 3), 2), torch.randn(2, 4, 5, 5)
    assert torch.equal(twin(input=x), twin(x))
