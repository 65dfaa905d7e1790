"""Layers that a model runs by references that are no registered modules stay dense, and nothing hangs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hypercompress import Budget, compress, from_pretrained
from hypercompress.errors import ModelError
from hypercompress.inspection import inspect
from hypercompress.packed.replaceable import REASON, replaceable
from hypercompress.specs import Status


class Listed(nn.Module):
    """Two of three layers are run by a plain list, one of them by its name too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(20, 24), nn.Linear(24, 24), nn.Linear(24, 6)
        self.order = [self.first, self.second]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.order:
            x = layer(x).tanh()
        y: Tensor = self.third(self.second(x).tanh())
        return y


class Closed(nn.Module):
    """One layer is run by a closure."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.third = nn.Linear(20, 24), nn.Linear(24, 6)
        first = nn.Linear(20, 24)
        self.first = first
        self.run: Callable[[Tensor], Tensor] = lambda x: first(x).tanh()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.third(self.run(x))
        return y


def inputs() -> Tensor:
    return torch.randn(64, 20, generator=torch.Generator().manual_seed(1))


def test_what_a_list_runs_stays_dense(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Listed().eval(), inputs()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    student = compress(model, Budget(params=0.95), x.split(8), "kfac")
    assert set(student.ranks) == {"third"}
    rows = {row["name"]: row for row in student.report["layers"]}
    assert {name for name, row in rows.items() if row["reason"] == REASON} == {"first", "second"}
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    student.save_pretrained(tmp_path / "s")
    torch.manual_seed(1)
    with torch.no_grad():
        assert torch.equal(from_pretrained(tmp_path / "s", Listed())(x), student(x))


def test_a_model_whose_copies_run_its_own_layers_is_refused() -> None:
    with pytest.raises(ModelError, match="whose copy does not run its own first"):
        compress(Closed().eval(), Budget(params=0.95), inputs().split(8), "kfac")


def test_an_ordinary_model_is_as_inspected() -> None:
    layer = nn.Linear(20, 20)
    model, x = nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(20, 6)).eval(), inputs()
    spec = inspect(model, x)
    assert replaceable(model, spec, x) is spec
    assert [row.status for row in spec.layers] == [Status.FACTORED] * 2
