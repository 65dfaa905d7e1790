"""What was saved in one precision, or in several, comes back so, and computes the same."""

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from hypercompress import Budget, Student, compress, from_pretrained


class Tables(nn.Module):
    """Complex weights, and tables that are not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(16, 64), nn.Linear(64, 10)
        self.spectrum = nn.Parameter(torch.randn(33, dtype=torch.cfloat, generator=torch.Generator().manual_seed(0)))
        angles = torch.linspace(0, 3, 64)
        self.register_buffer("turns", torch.polar(torch.ones(64), angles), persistent=False)
        self.register_buffer("exact", angles.double().exp(), persistent=False)
        self.register_buffer("table", angles.cos(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = torch.fft.irfft(torch.fft.rfft(x.float()) * self.spectrum, n=64).to(x)
        x = (x.float() * self.turns).real.to(x) + (x.double() * self.exact).to(x) + x * self.table
        out: Tensor = self.last(x)
        return out


def test_complex_numbers_and_tables_that_are_not_saved_stay_what_they_are(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 16)
    student = compress(Tables(), Budget(params=0.7), data=[(x,)], generator="svd")
    student.save_pretrained(tmp_path / "student")
    again = from_pretrained(tmp_path / "student", skeleton=Tables())
    assert (again.turns.dtype, again.spectrum.dtype, again.exact.dtype) == (torch.cfloat, torch.cfloat, torch.float64)
    assert torch.equal(again(x), student(x))


@pytest.mark.parametrize("norms", [torch.float32, torch.bfloat16])
def test_each_weight_has_the_precision_that_it_was_saved_in(norms: torch.dtype, tmp_path: Path) -> None:
    """All in bfloat16, and with BatchNorms in float32, as is usual."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=5).eval()
    student = compress(model, Budget(params=0.7), generator="svd").to(torch.bfloat16)
    for module in student.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.to(norms)
    student.save_pretrained(tmp_path / "student")
    again = from_pretrained(tmp_path / "student")
    wanted = {name: tensor.dtype for name, tensor in student.state_dict().items()}
    assert {name: tensor.dtype for name, tensor in again.state_dict().items()} == wanted
    assert again.ranks


class Attending(nn.Module):
    """Layers that a student holds in other parts: an attention that is unpacked, a kernel factored on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x).flatten(2).transpose(1, 2))
        out: Tensor = self.attention(x, x, x)[0].mean(1)
        return out


def test_parts_of_a_layer_have_the_precision_that_they_were_saved_in(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = compress(Attending(), Budget(params=0.2), [torch.randn(32, 8, 4, 4)], "kfac").half()
    student.norm.float()
    student.save_pretrained(tmp_path / "student")
    again = from_pretrained(tmp_path / "student", skeleton=Attending())
    wanted = {name: tensor.dtype for name, tensor in student.state_dict().items()}
    assert {name: tensor.dtype for name, tensor in again.state_dict().items()} == wanted
    assert again.unpacked
    assert again.input_ranks


def test_weights_that_are_shared_stay_so_in_another_precision(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight = model[0].weight
        return model

    Student(tied().to(torch.bfloat16)).save_pretrained(tmp_path / "student")
    again = from_pretrained(tmp_path / "student", skeleton=tied())
    assert again.model[0].weight is again.model[1].weight
    assert again.model[0].weight.dtype == torch.bfloat16


class Table(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("table", torch.arange(3.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x) + self.table
        return out


def test_a_table_follows_the_precision_of_the_network(tmp_path: Path) -> None:
    student = Student(Table().to(torch.bfloat16))
    student.save_pretrained(tmp_path / "student")
    again = from_pretrained(tmp_path / "student", skeleton=Table())
    x = torch.randn(2, 4, dtype=torch.bfloat16)
    assert again(x).dtype == again.table.dtype == torch.bfloat16
    assert torch.equal(again(x), student(x))
