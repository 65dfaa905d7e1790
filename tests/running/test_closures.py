"""Functions that hold the model's own modules are refused where it is copied; what copies come out right is not."""

import copy
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from hypercompress import Budget, compress, from_pretrained
from hypercompress.errors import ModelError
from hypercompress.running.copying import as_written, copy_of


class Net(nn.Module):
    """Runs its norm by whatever ``f`` is."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm, self.head = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4)
        self.seen: dict[str, Any] = {}
        self.f: Any = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        output: Tensor = self.head(self.norm(x) if self.f is None else self.f(x))
        return output

    def keep(self, module: nn.Module, args: Any, output: Any) -> None:
        self.seen["last"] = output

    def apply_norm(self, x: Tensor) -> Tensor:
        output: Tensor = self.norm(x)
        return output


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def hooked(model: Net) -> None:
    model.inner.register_forward_hook(lambda module, args, output: model.seen.update(last=output))


def stored(model: Net) -> None:
    model.f = lambda x: model.norm(x).relu()


def of_a_layer(model: Net) -> None:
    norm = model.norm
    model.f = lambda x: norm(x).relu()


def by_a_method(model: Net) -> None:
    run = model.norm.forward
    model.f = lambda x: run(x).relu()


def nested(model: Net) -> None:
    def inner(x: Tensor) -> Tensor:
        return model.apply_norm(x)

    model.f = lambda x: inner(x).relu()


def recursive(model: Net) -> None:
    def run(x: Tensor, depth: int = 1) -> Tensor:
        return run(x, depth - 1) if depth else model.apply_norm(x)

    model.f = run


def by_default(model: Net) -> None:
    def run(x: Tensor, norm: nn.Module = model.norm) -> Tensor:
        output: Tensor = norm(x)
        return output

    model.f = run


def by_keyword(model: Net) -> None:
    def run(x: Tensor, *, norm: nn.Module = model.norm) -> Tensor:
        output: Tensor = norm(x)
        return output

    model.f = run


def partially(model: Net) -> None:
    def run(scale: float, x: Tensor) -> Tensor:
        return scale * model.apply_norm(x)

    model.f = partial(run, 1.0)


def listed(model: Net) -> None:
    layers = [model.norm]
    model.f = partial(lambda functions, x: functions[0](x), [lambda x: layers[0](x).relu()])


def bound(model: Net) -> None:
    model.f = MethodType(lambda self, x: model.apply_norm(x), model.inner)


def weakly(model: Net) -> None:
    model.f = weakref.ref(model)


def by_a_proxy(model: Net) -> None:
    parent = weakref.proxy(model)
    model.f = lambda x: parent.apply_norm(x).relu()


def forwards(model: Net) -> None:
    model.norm.forward = lambda x: F.layer_norm(x, (16,), model.norm.weight)  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("change", "layer", "place"),
    [
        (hooked, "Net", "a hook of inner"),
        (stored, "Net", "f"),
        (of_a_layer, "norm", "f"),
        (by_a_method, "norm", "f"),
        (nested, "Net", "f"),
        (recursive, "Net", "f"),
        (by_default, "norm", "f"),
        (by_keyword, "norm", "f"),
        (partially, "Net", "f"),
        (listed, "norm", "f"),
        (bound, "Net", "f"),
        (weakly, "Net", "f"),
        (by_a_proxy, "Net", "f"),
        (forwards, "Net", r"norm\.forward"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_leads_back_to_the_original_is_refused(change: Callable[[Net], None], layer: str, place: str) -> None:
    model = net()
    copy_of(model)
    change(model)
    message = (
        f"received a model whose copy does not run its own {layer}: {place} holds the original's by .*; expected one "
        "that can be copied; make it a bound method of a module in the model, or let forward"
    )
    with pytest.raises(ModelError, match=message):
        copy_of(model)


def test_students_and_skeletons_of_such_models_are_refused(tmp_path: Path) -> None:
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(1))
    compress(net(), Budget(params=0.95), x.split(8), "kfac").save_pretrained(tmp_path / "s")
    model = net()
    hooked(model)
    for data in (list(x.split(8)), None):
        with pytest.raises(ModelError, match="a hook of inner holds the original's"):
            compress(model, Budget(params=0.95), data, "svd" if data is None else "kfac", example=x[:4])
    with pytest.raises(ModelError, match="a hook of inner holds the original's"):
        from_pretrained(tmp_path / "s", model)


def test_the_hooks_of_a_copy_that_are_methods_are_its_own() -> None:
    model, others = net(), list[Any]()
    model.f = model.apply_norm
    model.inner.register_forward_hook(model.keep)
    model.head.register_forward_hook(partial(model.keep))
    model.norm.register_forward_hook(lambda module, args, output: others.append(output))
    copied, x = copy_of(model), torch.randn(3, 8)
    with torch.no_grad():
        model.norm.weight.zero_()
        output = copied(x)
    assert float(output.std()) > 0
    assert torch.equal(copied.seen["last"], output)
    assert model.seen == {}
    assert len(others) == 1


def test_a_student_of_a_model_with_such_hooks_computes_its_own() -> None:
    class Gathering(Net):
        def forward(self, x: Tensor) -> Tensor:
            super().forward(x)
            last: Tensor = self.seen["last"]
            return last[:, :4]

    torch.manual_seed(0)
    model, x = Gathering().eval(), torch.randn(32, 8, generator=torch.Generator().manual_seed(1))
    model.norm.register_forward_hook(model.keep)
    student = compress(model, Budget(params=0.95), x.split(8), "kfac")
    with torch.no_grad():
        assert not torch.equal(student(x), student(2 * x + 1))
        assert len(student(x[:3])) == 3


class Frozen(nn.Linear):
    """A part that every copy has."""

    def __init__(self) -> None:
        super().__init__(8, 8)
        self.run = lambda x: self(x).relu()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Frozen":
        return self


def pruned() -> nn.Module:
    layer = nn.Linear(4, 4)
    prune.l1_unstructured(layer, "weight", 0.5)
    return layer


@pytest.mark.parametrize(
    "make",
    [
        pruned,
        Frozen,
        lambda: nn.utils.spectral_norm(nn.Linear(4, 4)),
        lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
        lambda: parametrizations.spectral_norm(nn.Linear(4, 4)),
        lambda: parametrizations.orthogonal(nn.Linear(4, 4)),
        lambda: nn.LSTM(4, 4, bidirectional=True),
        lambda: nn.LazyLinear(3),
        lambda: nn.TransformerEncoderLayer(8, 2, 8),
        lambda: torchmetrics.Accuracy(task="binary"),  # it sets functions on itself, and makes them anew in a copy
    ],
)
def test_what_is_copied_rightly_is_not_refused(make: Callable[[], nn.Module]) -> None:
    copy_of(nn.Sequential(make(), nn.Linear(4, 4)))


def test_compiled_models_are_not_refused() -> None:
    model = net()
    model.compile()
    for compiled in (model, nn.Sequential(torch.compile(net()))):
        copy_of(compiled)
        copy_of(as_written(compiled))


def test_an_empty_cell_and_a_dead_proxy_hold_nothing() -> None:
    model, other = net(), net()
    late: Any
    parent = weakref.proxy(other)
    model.seen["functions"] = [lambda: late, lambda: parent, weakref.ref(other)]
    del other
    assert copy_of(model).seen["functions"] == model.seen["functions"]
    late = copy.copy(model)
