"""Fused projections taken apart: the same function, three ranks, and back."""

from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

import hypercompress
from hypercompress import Budget, compress
from hypercompress.inspection import inspect
from hypercompress.packed.projection import SWITCH, SplitProjection
from hypercompress.packed.unpacking import divisible, holders, pack_layers, unpack, unpacked_layers
from hypercompress.report import bytes_of
from hypercompress.running.copying import weights_of
from hypercompress.running.memory import overlapping
from hypercompress.specs import Status


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
    assert set(map(torch.Tensor.data_ptr, split.parameters())).isdisjoint(
        map(torch.Tensor.data_ptr, fused.parameters())
    )
    assert torch.equal(split.weight, fused.weight)
    assert (split.bias is None) is not bias
    packed = split.pack()
    assert repr(packed) == repr(fused)
    assert all(torch.equal(a, b) for a, b in zip(packed.parameters(), fused.parameters(), strict=True))
    assert all(p.requires_grad for p in packed.parameters())
    fused.requires_grad_(False)
    assert not any(p.requires_grad for p in SplitProjection(fused).parameters())
    assert not any(p.requires_grad for p in SplitProjection(fused).pack().parameters())


def test_an_unpacked_model_has_the_memory_of_its_model_and_a_student_its_own() -> None:
    model = vit()
    own, apart = set(overlapping(weights_of(model)).values()), unpack(model)
    assert set(overlapping([*weights_of(model), *weights_of(apart)]).values()) == own
    assert bytes_of(apart) == bytes_of(model)
    student = compress(model, Budget(params=0.6), None, "svd")
    groups = overlapping([*weights_of(model), *weights_of(student)])
    assert {groups[id(t)] for t in weights_of(model)}.isdisjoint({groups[id(t)] for t in weights_of(student)})


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


READERS = {
    "beit_base_patch16_224": {"embed_dim": 48, "depth": 2, "num_heads": 3},
    "vit_tiny_patch16_dinov3_qkvb": {"embed_dim": 48, "depth": 2, "num_heads": 3, "img_size": 64},
    "swinv2_tiny_window16_256": {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2]},
}


@pytest.mark.parametrize("name", READERS)
def test_an_attention_that_would_read_the_weight_calls_the_three_layers(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=5, **READERS[name]).eval()
    for key, parameter in model.named_parameters():
        if "_bias" in key:
            nn.init.normal_(parameter, std=0.5)
    size = model.pretrained_cfg["input_size"][-1]
    x = torch.randn(12, 3, *[READERS[name].get("img_size", size)] * 2, generator=torch.Generator().manual_seed(1))
    holders_ = [module for module in model.modules() if hasattr(module, SWITCH)]
    assert holders_
    apart = unpack(model)
    assert len(unpacked_layers(apart)) == len(holders_)
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(apart(x), expected, rtol=1e-4, atol=1e-5)
    parts = [layer for layer in inspect(apart, x[:2]).layers if ".qkv." in layer.name]
    assert len(parts) == 3 * len(holders_)
    assert all(layer.status is Status.FACTORED for layer in parts)

    student = compress(model, Budget(macs=0.6), x.split(4), "kfac")
    assert any(".qkv." in layer for layer in student.ranks)
    assert not any(getattr(module, SWITCH) for module in holders_)  # the teacher's own
    student.save_pretrained(tmp_path / "s")
    loaded = hypercompress.from_pretrained(tmp_path / "s")
    with torch.no_grad():
        assert torch.equal(loaded(x), student(x))
        dense = student.to_dense()
        torch.testing.assert_close(dense(x), student(x), rtol=1e-4, atol=1e-5)
    assert not any(getattr(module, SWITCH, False) for module in dense.modules())
    assert [n for n, _ in dense.named_parameters()] == [n for n, _ in model.named_parameters()]


def test_what_is_fused_again_is_read_again() -> None:
    model = timm.create_model("beit_base_patch16_224", embed_dim=48, depth=1, num_heads=3, pretrained=False)
    apart = unpack(model)
    assert getattr(apart.blocks[0].attn, SWITCH)
    pack_layers(apart)
    assert not getattr(apart.blocks[0].attn, SWITCH)
    chosen = timm.create_model("beit_base_patch16_224", embed_dim=48, depth=1, num_heads=3, pretrained=False)
    setattr(chosen.blocks[0].attn, SWITCH, True)  # by whoever made it
    apart = unpack(chosen)
    pack_layers(apart)
    assert getattr(apart.blocks[0].attn, SWITCH)


def test_a_weight_that_an_attention_reads_is_still_reported() -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.head = nn.Linear(12, 36), nn.Linear(36, 3)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(nn.functional.linear(x, self.qkv.weight, self.qkv.bias))
            return y

    spec = inspect(unpack(Reading().eval()), torch.randn(2, 12))
    parts = [layer for layer in spec.layers if layer.name.startswith("qkv")]
    assert parts
    assert all(layer.status is Status.UNSUPPORTED and "read directly" in layer.reason for layer in parts)
