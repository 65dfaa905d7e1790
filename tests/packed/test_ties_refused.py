"""What else two layers can share: it stays as it is, with its reason."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers.std_conv import ScaledStdConv2d, StdConv2d
from torch import Tensor, nn

from hypercompress import Budget, compress, from_pretrained
from hypercompress.inspection import inspect
from hypercompress.packed.projection import SplitProjection
from hypercompress.packed.unpacking import unpack
from hypercompress.specs import Side, Status
from tests.lookup import row
from tests.tied import Decoders, Dilated, inputs, made


def test_a_shared_bias_stays_shared(tmp_path: Path) -> None:
    class Alike(Decoders):
        def __init__(self) -> None:
            super().__init__()
            self.late.bias = self.early.bias

    model, x = made(Alike), inputs(Decoders)
    spec = inspect(model, x[:2])
    assert sum(layer.params for layer in spec.layers) == spec.params
    student = compress(model, Budget(params=0.6), x.split(12), "kfac")
    assert student.model.late.bias is student.model.early.bias
    student.save_pretrained(tmp_path / "s")
    loaded = from_pretrained(tmp_path / "s", Alike())
    assert loaded.model.late.bias is loaded.model.early.bias
    assert torch.equal(loaded(x), student(x))
    dense = student.to_dense()
    assert dense.late.bias is dense.early.bias


@pytest.mark.parametrize("also", ["", "late", "early"])
def test_a_bias_that_somebody_else_holds_keeps_its_layer_dense(also: str) -> None:
    """BERT's head: ``self.decoder.bias = self.bias``. So does one that is held by a layer of a group, for the group."""

    class Head(Decoders):
        def __init__(self) -> None:
            super().__init__()
            self.bias = (self.get_submodule(also) if also else self.encode).bias

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.bias.sum()

    model, x = made(Head), inputs(Decoders)
    spec = inspect(model, x[:2])
    bound = ("early", "late") if also else ("encode",)
    free = {"encode", "early", "late", "head"} - {*bound}
    assert {path for layer in spec.candidates for path in layer.paths} == free
    for path in bound:
        assert row(spec, path).status is Status.TIED
        assert row(spec, path).reason.startswith("its bias is held by the model itself, too")
    student = compress(model, Budget(params=0.8), x.split(12), "kfac")
    assert sum(p.numel() for p in student.parameters()) == student.report["student"]["params"]
    assert student.model.bias is (student.model.get_submodule(also) if also else student.model.encode).bias


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_norm_whose_parameters_another_holds_gives_nothing_back(part: str) -> None:
    class Norms(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 12, 3, bias=False), nn.Conv2d(12, 12, 3, bias=False)
            self.c, self.head = nn.Conv2d(12, 12, 1, bias=False), nn.Linear(12, 5)
            self.norm, self.other, self.own = (nn.BatchNorm2d(12) for _ in range(3))
            setattr(self.other, part, getattr(self.norm, part))

        def forward(self, x: Tensor) -> Tensor:
            x = self.other(self.b(self.norm(self.a(x)).relu())).relu()
            logits: Tensor = self.head(self.own(self.c(x)).relu().mean((2, 3)))
            return logits

    model, x = made(Norms), inputs(Dilated)
    assert {layer.name: layer.follower for layer in inspect(model, x[:2]).candidates} == {
        "a": None,
        "b": None,
        "c": "own",
        "head": None,
    }
    student = compress(model, Budget(params=0.5), x.split(12), "kfac").model
    assert getattr(student.other, part) is getattr(student.norm, part)
    assert torch.equal(getattr(student.norm, part), getattr(model.norm, part))


def test_a_projection_with_the_bias_of_another_is_not_taken_apart() -> None:
    model = made(Blocks)
    model.third.out.bias = None
    model.third.bias = model.third.qkv.bias
    assert unpack(model) is model
    student = compress(model, Budget(params=0.8), generator="svd", example=torch.randn(2, 12, dtype=torch.float64))
    assert student.model.third.bias is student.model.third.qkv.bias


class Block(nn.Module):
    """A stand-in for timm's attention: a fused projection by timm's name."""

    def __init__(self, qkv: nn.Linear) -> None:
        super().__init__()
        self.qkv, self.out = qkv, nn.Linear(36, 12)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = x + self.out(self.qkv(x).tanh())
        return output


class Blocks(nn.Module):
    """Two blocks with one projection weight, and one block with its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (Block(nn.Linear(12, 36)) for _ in range(3))
        self.second.qkv.weight = self.first.qkv.weight

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.third(self.second(self.first(x)))
        return output


def test_a_shared_projection_is_not_taken_apart(tmp_path: Path) -> None:
    model, x = made(Blocks), torch.randn(4, 12, dtype=torch.float64)
    apart = unpack(model)
    assert [name for name, m in apart.named_modules() if isinstance(m, SplitProjection)] == ["third.qkv"]
    assert row(inspect(apart, x), "first.qkv").shared == ("second.qkv",)
    student = compress(model, Budget(params=0.5), generator="svd", example=x)
    assert {"first.qkv", "second.qkv"} <= set(student.ranks)
    student.save_pretrained(tmp_path / "s")
    loaded = from_pretrained(tmp_path / "s", Blocks())
    assert torch.equal(loaded(x), student(x))
    dense = student.to_dense()
    assert dense.second.qkv.weight is dense.first.qkv.weight
    assert type(dense.third.qkv) is nn.Linear
    torch.testing.assert_close(dense(x), student(x), rtol=0, atol=1e-10)


class Autoencoder(nn.Module):
    """A layer ``a``, and ``b`` that shares its weight in a way that no pair of factors serves."""

    def __init__(self, change: Callable[["Autoencoder"], None]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 12)
        self.run: Callable[[Autoencoder, Tensor], Tensor] = lambda model, x: model.b(model.a(x))
        change(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.run(self, x))


def as_view(model: Autoencoder) -> None:
    model.b.weight = nn.Parameter(model.a.weight.detach().t())


def frozen_apart(model: Autoencoder) -> None:
    model.b.weight = nn.Parameter(model.a.weight.detach(), requires_grad=False)


def transposed_class(model: Autoencoder) -> None:
    class Transposed(nn.Module):
        def __init__(self, weight: nn.Parameter) -> None:
            super().__init__()
            self.weight = weight

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    model.b = Transposed(model.a.weight)  # type: ignore[assignment]


def in_a_function(model: Autoencoder) -> None:
    model.b.weight = model.a.weight
    model.run = lambda model, x: F.linear(model.b(model.a(x)), model.a.weight)


def never_called(model: Autoencoder) -> None:
    model.b.weight = model.a.weight
    model.run = lambda model, x: model.a(x).relu()


def embedded(model: Autoencoder) -> None:
    model.b = nn.Embedding(12, 12)  # type: ignore[assignment]
    model.b.weight = model.a.weight
    model.run = lambda model, x: model.a(x) + model.b(torch.zeros(len(x), dtype=torch.int64))


def with_an_argument(model: Autoencoder) -> None:
    model.a, model.b = (nn.ConvTranspose1d(12, 12, 3, stride=2) for _ in range(2))  # type: ignore[assignment]
    model.b.weight = model.a.weight
    model.run = lambda model, x: model.a(x[..., None]).mean(-1) + model.b(x[..., None], output_size=(4,)).mean(-1)  # type: ignore[call-arg]


def standardised(conv: type[nn.Module], **options: Any) -> Callable[[Autoencoder], None]:
    def change(model: Autoencoder) -> None:
        model.a, model.b = conv(12, 12, 3, padding=1), conv(12, 12, 3, padding=1, **options)
        model.b.weight = model.a.weight
        model.run = lambda model, x: model.b(model.a(x[..., None, None]))[..., 0, 0]

    return change


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        (as_view, Status.TIED, "b holds it as another parameter (a view, or frozen apart)"),
        (frozen_apart, Status.TIED, "b holds it as another parameter (a view, or frozen apart)"),
        (transposed_class, Status.TIED, "b is of another class (Transposed)"),
        (in_a_function, Status.TIED, "its weight is read directly by the model itself"),
        (never_called, Status.TIED, "b: its forward was never called in a pass of the example"),
        (embedded, Status.TIED, "b is of another class (Embedding)"),
        (
            with_an_argument,
            Status.TIED,
            "b: it is called with more than one argument (an output size?); its twin takes",
        ),
        (standardised(StdConv2d, eps=0.1), Status.TIED, "b makes another matrix of it"),
        (standardised(ScaledStdConv2d), Status.TIED, "b has parameters besides weight and bias"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_any_other_sharing_stays_and_says_why(
    change: Callable[[Autoencoder], None], status: Status, reason: str
) -> None:
    torch.manual_seed(0)
    model, x = Autoencoder(change).eval(), torch.randn(3, 12)
    layer = row(inspect(model, x), "a")
    assert layer.status is status
    assert layer.reason.startswith(reason)
    assert layer.reason.endswith("; shares its weight with b")
    assert layer.shared == ()
    student = compress(model, Budget(params=0.95), generator="svd", example=x)
    assert not {"a", "b"} & set(student.ranks)


def test_an_encoder_that_is_read_transposed_is_no_layer() -> None:
    def change(model: Autoencoder) -> None:
        model.run = lambda model, x: F.linear(model.b(model.a(x)), model.a.weight.t())

    model = Autoencoder(change)
    layer = row(inspect(model, torch.randn(3, 12)), "a")
    assert (layer.status, layer.reason) == (Status.UNSUPPORTED, "its weight is read directly by the model itself")


def test_standardised_layers_of_one_matrix_are_one() -> None:
    model, x = Autoencoder(standardised(StdConv2d)), torch.randn(3, 12)
    layer = row(inspect(model, x), "a")
    assert (layer.status, layer.shared, layer.side) == (Status.FACTORED, ("b",), Side.OUTPUT)
    student = compress(model, Budget(params=0.5), generator="svd", example=x)
    assert {"a", "b"} <= set(student.ranks)
