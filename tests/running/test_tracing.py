"""What one traced pass says of norms: which can give back what truncation takes from the layer before it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypercompress.inspection import inspect
from tests.lookup import row


@pytest.mark.parametrize("shared", ["norm of two layers", "two norms of a layer"])
def test_norm_that_cannot_stand_for_one_layer_is_no_follower(shared: str) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
            self.norm, self.other = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            if shared == "norm of two layers":
                return (self.norm(self.a(x)) + self.norm(self.b(x))).mean((2, 3))
            y = self.a(x)
            return (self.norm(y) + self.other(y)).mean((2, 3))

    spec = inspect(Shared(), torch.randn(2, 3, 8, 8))
    assert row(spec, "a").follower is None


OTHERS: dict[str, tuple[bool, Any]] = {  # whether it reads the numbers
    "shortcut": (True, lambda x: x),
    "shortcut in place": (True, lambda x: torch.zeros_like(x).add_(x)),
    "view": (True, lambda x: x.flatten(2)[..., :1, None]),
    "transposed": (True, lambda x: x.mT.mT),
    "keyword": (True, lambda x: torch.relu(input=x)),
    "module": (True, nn.AvgPool2d(1)),
    "shape": (False, lambda x: x.shape[0] + x.size(1) + x.dim() + len(x) + x.stride(0)),
    "type": (False, lambda x: float(x.dtype == torch.float32 and x.is_floating_point() and x.is_contiguous())),
    "nothing": (False, lambda _: 1),
}


@pytest.mark.parametrize("other", OTHERS)
def test_norm_is_no_follower_where_somebody_else_reads_the_output(other: str) -> None:
    """The stem of a pre-activation network: a shift that the norm takes back is missing in the shortcut."""

    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm, self.conv = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
            self.dropout = nn.Sequential(nn.Dropout(), nn.Identity())

        def forward(self, x: Tensor) -> Tensor:
            x = self.dropout(self.stem(x)).contiguous()
            return (self.conv(self.norm(x)) + OTHERS[other][1](x)).mean((2, 3))

    spec = inspect(Stem(), torch.randn(2, 3, 8, 8))
    assert row(spec, "stem").follower == (None if OTHERS[other][0] else "norm")


def test_norm_is_no_follower_of_an_output_of_the_model() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.norm = nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.fc(x)
            return y, self.norm(y)

    x = torch.randn(3, 4)
    for index, follower in enumerate((None, "norm")):
        assert row(inspect(Two(), x, lambda model, batch, i=index: model(batch)[i]), "fc").follower == follower


@pytest.mark.parametrize("size", [(8, 12), (8, 4, 12), (12,)])
def test_batch_norm_of_another_axis_is_no_follower(size: tuple[int, ...]) -> None:
    """A linear layer's channels come last, a BatchNorm's are axis 1: their equal lengths say nothing."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(12, 8, bias=False)
            self.norm = nn.BatchNorm2d(8) if len(size) == 3 else nn.BatchNorm1d(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.fc(x)).flatten(1)

    spec = inspect(Positions(), torch.randn(3, *size))
    assert row(spec, "fc").follower == ("norm" if len(size) == 1 else None)
