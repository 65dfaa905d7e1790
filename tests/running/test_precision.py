"""The type that a model's images have is that of its first real parameter, whatever else it holds before."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hypercompress import Budget, compress, export
from hypercompress.running.calling import placed, precision, single_
from hypercompress.synthetic.inversion import synthesize

FIRST = [torch.tensor([2, 1, 0]), torch.ones(3, dtype=torch.complex64)]


class Ordered(nn.Module):
    """Its first parameter is of whole or complex numbers."""

    def __init__(self, first: Tensor) -> None:
        super().__init__()
        self.first = nn.Parameter(first, requires_grad=False)
        self.a, self.norm, self.b = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Conv2d(16, 16, 3)
        self.last = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.first.real.to(x.dtype)[:, None, None]
        x = self.b(self.norm(self.a(x)).relu()).relu()
        logits: Tensor = self.last(x.mean((2, 3)))
        return logits


@pytest.mark.parametrize("first", FIRST, ids=["whole", "complex"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_first_real_parameter_counts(first: Tensor, dtype: torch.dtype) -> None:
    model = nn.ParameterList([nn.Parameter(first, requires_grad=False), nn.Parameter(torch.ones(2, dtype=dtype))])
    assert precision(model) is dtype
    assert placed(torch.ones(2), model).dtype is dtype
    assert single_(model) is dtype
    assert precision(model) is (torch.float32 if dtype is torch.bfloat16 else dtype)
    assert model[0].dtype is first.dtype


def test_without_a_real_parameter_it_is_single() -> None:
    assert precision(nn.ParameterList([nn.Parameter(torch.ones(2, dtype=torch.complex128))])) is torch.float32


@pytest.mark.parametrize("first", FIRST, ids=["whole", "complex"])
def test_such_a_model_is_exported_and_gives_images(first: Tensor, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Ordered(first).eval()
    student = compress(model, Budget(params=0.6), example=torch.randn(6, 3, 12, 12), generator="svd")
    assert student.ranks
    assert export(student, tmp_path / "student.pt2", input_size=(3, 12, 12)).max_difference <= 1e-4
    (images,) = synthesize(model, (3, 12, 12), images=2, steps=1)
    assert images.dtype is torch.float32
