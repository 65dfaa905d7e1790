"""Layers stay dense that a model runs by references that are no registered modules, or of which it asks the class."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hypercompress import Budget, compress, from_pretrained
from hypercompress.errors import ModelError
from hypercompress.inspection import inspect
from hypercompress.packed.replaceable import ANOTHER, REASON, replaceable
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


LAYERS: dict[str, nn.Module] = {}


class Global(nn.Module):
    """One layer is run by a global."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.third = nn.Linear(20, 24), nn.Linear(24, 6)
        LAYERS["first"] = self.first

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.third(LAYERS["first"](x).tanh())
        return y


def test_a_model_whose_copies_run_a_layer_by_a_global_is_refused() -> None:
    with pytest.raises(ModelError, match=r"whose copy does not run its own first \(does it reach"):
        compress(Global().eval(), Budget(params=0.95), inputs().split(8), "kfac")


def test_an_ordinary_model_is_as_inspected() -> None:
    layer = nn.Linear(20, 20)
    model, x = nn.Sequential(layer, nn.Tanh(), layer, nn.Linear(20, 6)).eval(), inputs()
    spec = inspect(model, x)
    assert replaceable(model, spec, x) is spec
    assert [row.status for row in spec.layers] == [Status.FACTORED] * 2


class Asking(nn.Module):
    """Looks at a layer before it runs it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.second, self.third = nn.Linear(20, 24), nn.Linear(24, 24), nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        x, second = self.first(x).tanh(), self.second
        if self.how == "skipped":
            x = second(x) if isinstance(second, nn.Linear) else x
        elif self.how == "twice":
            x = second(x) if isinstance(second, nn.Linear) else second(second(x))
        elif self.how == "exact class":
            x = second(x) * (3 if type(second) is nn.Linear else 1)
        elif self.how == "missing":
            x = second(x) + second.extra_repr().count("in_features")
        elif self.how == "container":
            x = second(x) + isinstance(second, nn.Sequential)
        elif self.how == "harmless":
            x = second(x) if isinstance(second, nn.Linear) else second.forward(x)
        elif self.how == "numbers":
            x = second(x) / second.in_features + second.weight.shape[1] + float(second.bias is None)
        y: Tensor = self.third(x.tanh())
        return y


@pytest.mark.parametrize("how", ["skipped", "twice", "exact class", "missing", "container"])
def test_a_layer_of_which_the_model_asks_the_class_stays_dense(how: str) -> None:
    torch.manual_seed(0)
    model, x = Asking(how).eval(), inputs()
    spec = inspect(model, x)
    assert {layer.name for layer in spec.candidates} == {"first", "second", "third"}
    found = replaceable(model, spec, x)
    assert {layer.name for layer in found.candidates} == {"first", "third"}
    assert {layer.name: layer.reason for layer in found.layers if layer.reason} == {"second": ANOTHER}
    student = compress(model, Budget(params=0.95), x.split(8), "kfac")
    with torch.no_grad():
        error = (student(x) - model(x)).square().mean() / model(x).square().mean()
    assert error < 0.2


@pytest.mark.parametrize("how", ["harmless", "numbers"])
def test_a_look_that_changes_nothing_does_no_harm(how: str) -> None:
    model, x = Asking(how).eval(), inputs()
    state, spec = torch.random.get_rng_state(), inspect(model, x)
    assert replaceable(model, spec, x) is spec
    assert torch.equal(torch.random.get_rng_state(), state)


def test_layers_that_only_together_change_the_model() -> None:
    class Both(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = super().forward(x)
            return y if any(isinstance(self[place], nn.Linear) for place in (0, 2)) else y + 1

    model, x = Both(nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 20)).eval(), inputs()
    found = replaceable(model, inspect(model, x), x)
    assert {layer.name for layer in found.layers if layer.reason} == {"2"}
    assert "0" in compress(model, Budget(params=0.9), x.split(8), "kfac").ranks


def test_listed_and_asked() -> None:
    class Mixed(Listed):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y if isinstance(self.third, nn.Linear) else -y

    model, x = Mixed().eval(), inputs()
    found = replaceable(model, inspect(model, x), x)
    assert {layer.name: layer.reason for layer in found.layers} == {"first": REASON, "second": REASON, "third": ANOTHER}


@pytest.mark.parametrize("seeded", [True, False])
def test_a_model_that_draws_is_as_inspected(seeded: bool) -> None:
    class Drawing(nn.Sequential):
        generator = torch.Generator().manual_seed(0)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = super().forward(x)
            return y + torch.randn(y.shape, generator=None if seeded else self.generator)

    model, x = Drawing(nn.Linear(20, 20), nn.Linear(20, 20)).eval(), inputs()
    spec = inspect(model, x)
    assert replaceable(model, spec, x) is spec


def test_lack_of_memory_is_no_reason() -> None:
    model, x, runs = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20)).eval(), inputs(), Counter[str]()
    spec = inspect(model, x)

    def fails(model: nn.Module, batch: Tensor) -> Tensor:
        runs["all"] += 1
        if runs["all"] > 1:
            raise torch.OutOfMemoryError("no memory")
        y: Tensor = model(batch)
        return y

    with pytest.raises(torch.OutOfMemoryError):
        replaceable(model, spec, x, fails)
    assert not any(module._forward_hooks for module in model.modules())
