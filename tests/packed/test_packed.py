"""Attention layers that stay packed, each with its reason, and what else is unpacked beside them."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal

from hypercompress import Budget, compress, from_pretrained
from hypercompress.inspection import inspect
from hypercompress.kinds import LinearKind, registry
from hypercompress.packed.attention import UnpackedAttention
from hypercompress.packed.unpacking import pack_layers, unpack, unpack_layers
from hypercompress.report import bytes_of
from hypercompress.specs import Status
from tests.attending import Pooled, randomised, subclass


def test_a_model_without_attention_is_not_copied() -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    assert unpack(model) is model


def test_of_a_model_with_attention_other_modules_are_unpacked() -> None:
    model = Pooled().train()
    model.attention.eval()
    model.attention.in_proj_weight.requires_grad_(False)
    unpacked, x = unpack(model), torch.randn(3, 4, 16)
    assert type(model.attention) is nn.MultiheadAttention
    assert type(unpacked.attention) is UnpackedAttention
    assert unpacked.stem.training
    assert not any(module.training for module in unpacked.attention.modules())
    assert {n for n, p in unpacked.named_parameters() if not p.requires_grad} == {
        f"attention.{x}_proj.weight" for x in "qkv"
    }
    same = {n for n, p in unpacked.named_parameters() if any(p is other for other in model.parameters())}
    assert same == {n for n, _ in model.named_parameters() if not n.startswith("attention.")}  # nothing is held twice
    assert not set(model.modules()) & set(unpacked.modules())
    student = compress(model, Budget(params=0.8), generator="svd", example=x)
    assert not {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in student.parameters()}
    assert bytes_of(unpacked) == bytes_of(model)
    torch.testing.assert_close(unpacked(x), model(x))
    pack_layers(unpacked)
    assert repr(unpacked) == repr(model)
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in unpacked.state_dict().items())


def hooked(model: Pooled) -> None:
    model.attention.register_forward_hook(lambda *_: None)


def hooked_inside(model: Pooled) -> None:
    model.attention.out_proj.register_forward_pre_hook(lambda *_: None)


def patched(model: Pooled) -> None:
    model.attention.forward = model.attention.forward


def parametrised(model: Pooled) -> None:
    parametrize.register_parametrization(model.attention, "in_proj_weight", nn.Identity())


def parametrised_inside(model: Pooled) -> None:
    orthogonal(model.attention.out_proj)


def adapted(model: Pooled) -> None:
    model.attention.adapter = nn.Linear(16, 2)


def with_a_buffer(model: Pooled) -> None:
    model.attention.register_buffer("scale", torch.ones(()))


def tied(model: Pooled) -> None:
    model.head = nn.Linear(16, 16)
    model.head.weight = model.attention.out_proj.weight


def test_an_attention_under_two_names_is_unpacked_under_both() -> None:
    model, x = Pooled().eval(), torch.randn(2, 4, 16)
    model.again = model.attention
    apart = unpack(model)
    assert isinstance(apart.again, UnpackedAttention)
    assert apart.again is apart.attention
    torch.testing.assert_close(apart(x), model(x))
    pack_layers(apart)
    assert type(apart.again) is nn.MultiheadAttention
    assert apart.again is apart.attention


@pytest.mark.parametrize(
    ("change", "status", "reason"),
    [
        (subclass, Status.UNSUPPORTED, "a Special may compute anything"),
        (hooked, Status.UNSUPPORTED, "it has hooks or a forward of its own"),
        (hooked_inside, Status.UNSUPPORTED, "it has hooks or a forward of its own"),
        (patched, Status.UNSUPPORTED, "it has hooks or a forward of its own"),
        (parametrised, Status.UNSUPPORTED, "a ParametrizedMultiheadAttention may compute anything"),
        (parametrised_inside, Status.UNSUPPORTED, "a ParametrizedNonDynamicallyQuantizableLinear may compute anything"),
        (adapted, Status.UNSUPPORTED, "it holds other parameters or modules than torch gives it"),
        (with_a_buffer, Status.UNSUPPORTED, "it holds other parameters or modules than torch gives it"),
        (tied, Status.UNSUPPORTED, "it shares a parameter with head"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_any_other_attention_stays_packed_and_says_why(
    change: Callable[[Pooled], None], status: Status, reason: str
) -> None:
    model = Pooled().eval()
    change(model)
    assert unpack(model) is model
    row = next(layer for layer in inspect(model, torch.randn(2, 4, 16)).layers if layer.name == "attention")
    assert row.status is status
    assert row.reason.endswith(reason)
    with pytest.raises(TypeError, match=r"received nn.MultiheadAttention at attention; expected one that can be"):
        unpack_layers(copy.deepcopy(model), ["attention"])
    student = compress(model, Budget(params=0.9), generator="svd", example=torch.randn(2, 4, 16))
    assert student.unpacked == []
    assert not any(name.startswith("attention") for name in student.ranks)


def test_attention_with_a_kind_of_its_own_or_alone_stays_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = nn.MultiheadAttention(16, 2)
    assert unpack(alone) is alone
    model = Pooled()
    monkeypatch.setitem(registry._KINDS, nn.MultiheadAttention, LinearKind())
    assert unpack(model) is model


def test_a_projection_whose_weight_somebody_reads_is_not_factored(tmp_path: Path) -> None:
    class Reader(Pooled):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.attention.in_proj_weight.mean()

    model = randomised(Reader())
    x = torch.randn(2, 4, 16)
    student = compress(model, Budget(params=0.8), generator="svd", example=x)
    rows = {row["name"]: row for row in student.report["layers"]}
    for name in ("q_proj", "k_proj", "v_proj"):
        assert rows[f"attention.{name}"]["reason"] == "its weight is read directly by the model itself"
    assert student.ranks
    student.save_pretrained(tmp_path / "s")
    assert torch.equal(from_pretrained(tmp_path / "s", Reader())(x), student(x))
