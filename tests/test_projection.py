"""Fused projections taken apart: the same function, three ranks, and back."""

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import hypercompress
from hypercompress import Budget, compress
from hypercompress.inspection import inspect
from hypercompress.projection import SplitProjection
from hypercompress.specs import Status
from hypercompress.unpacking import divisible, holders, pack_layers, unpack, unpacked_layers


def vit() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_vit", img_size=32, patch_size=8, num_classes=5, pretrained=False).eval()


def images(count: int = 16) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bias", [True, False])
def test_three_layers_are_the_fused_one(bias: bool) -> None:
    fused = nn.Linear(7, 12, bias, dtype=torch.float64)
    x = torch.randn(2, 3, 7, dtype=torch.float64)
    split = SplitProjection(fused)
    torch.testing.assert_close(split(x), fused(x), rtol=0, atol=1e-14)
    assert torch.equal(split.weight, fused.weight)
    assert (split.bias is None) is not bias
    packed = split.pack()
    assert repr(packed) == repr(fused)
    assert all(torch.equal(a, b) for a, b in zip(packed.parameters(), fused.parameters(), strict=True))
    assert all(p.requires_grad for p in packed.parameters())
    fused.requires_grad_(False)
    assert not any(p.requires_grad for p in SplitProjection(fused).parameters())
    assert not any(p.requires_grad for p in SplitProjection(fused).pack().parameters())


def test_a_transformer_is_taken_apart_and_costs_the_same() -> None:
    model = vit()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    apart = unpack(model)
    assert len(unpacked_layers(apart)) == len(model.blocks)
    assert not unpacked_layers(model)
    with torch.no_grad():
        torch.testing.assert_close(apart(images()), model(images()), rtol=1e-5, atol=1e-6)
    ours, theirs = (inspect(m, images(2)) for m in (apart, model))
    assert (ours.params, ours.macs) == (theirs.params, theirs.macs)
    pack_layers(apart)
    assert all(torch.equal(tensor, before[name]) for name, tensor in apart.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("unit", ["params", "macs"])
def test_queries_keys_and_values_get_ranks_of_their_own(unit: str, tmp_path: Path) -> None:
    model = vit()
    student = compress(model, Budget(**{unit: 0.4}), [images()] * 4, "kfac")
    parts = {name: rank for name, rank in student.ranks.items() if ".qkv." in name}
    assert {name.rpartition(".")[2] for name in parts} == {"q", "k", "v"}
    assert len(set(parts.values())) > 1
    share = student.report["student"][unit] / student.report["teacher"][unit]
    assert share <= 0.4
    spec = inspect(student.model, images(2))
    assert spec.total(next(u for u in hypercompress.specs.Unit if u == unit)) == student.report["student"][unit]
    student.save_pretrained(tmp_path / "s")
    loaded = hypercompress.from_pretrained(tmp_path / "s")
    assert loaded.unpacked == student.unpacked
    with torch.no_grad():
        assert torch.equal(loaded(images()), student(images()))
        dense = student.to_dense()
        assert not unpacked_layers(dense)
        assert [n for n, _ in dense.named_parameters()] == [n for n, _ in model.named_parameters()]
        torch.testing.assert_close(dense(images()), student(images()), rtol=1e-4, atol=1e-5)


def test_what_nothing_was_gained_from_is_fused_again() -> None:
    student = compress(vit(), Budget(params=0.98), [images()] * 4, "kfac")
    for name, module in unpacked_layers(student.model).items():
        assert any(f"{name}.{part}" in student.ranks for part in "qkv"), module
    assert len(student.unpacked) < len(student.model.blocks)


def test_only_a_plain_layer_of_that_name_is_taken_apart() -> None:
    class Special(nn.Linear):
        """May compute anything."""

    def judged(layer: nn.Module, name: str = "qkv") -> bool:
        model = nn.Module()
        model.add_module(name, layer)
        return divisible(name, layer, holders(model))

    assert judged(nn.Linear(4, 12))
    assert not judged(nn.Linear(4, 12), "proj")
    assert not judged(nn.Linear(4, 13))
    assert not judged(Special(4, 12))
    hooked = nn.Linear(4, 12)
    hooked.register_forward_hook(lambda *_: None)
    assert not judged(hooked)
    assert not judged(nn.utils.parametrizations.weight_norm(nn.Linear(4, 12)))
    model = nn.ModuleDict({"qkv": nn.Linear(4, 12), "other": nn.Linear(4, 12)})
    model["other"].weight = model["qkv"].weight
    assert not divisible("qkv", model["qkv"], holders(model))


def test_a_weight_that_the_attention_reads_is_still_reported() -> None:
    model = timm.create_model("beit_base_patch16_224", embed_dim=48, depth=1, num_heads=3, pretrained=False).eval()
    spec = inspect(unpack(model), torch.randn(1, 3, 224, 224))
    parts = [layer for layer in spec.layers if ".qkv." in layer.name or layer.name.endswith(".qkv")]
    assert parts
    assert all(layer.status is Status.UNSUPPORTED and "read directly" in layer.reason for layer in parts)
