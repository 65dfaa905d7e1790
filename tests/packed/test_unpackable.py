"""Layers stay packed with whose unpacked form the model would fail or compute another thing."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypercompress import Budget, compress, from_pretrained
from hypercompress.errors import ModelError
from hypercompress.packed.unpackable import ANOTHER, taken_apart
from hypercompress.packed.unpacking import unpacked_layers
from hypercompress.preparation import prepare
from tests.attending import Pooled, randomised
from tests.lookup import row


class Attention(nn.Module):
    """May look at its projection, or pass its parameters on."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.how, self.qkv, self.proj = how, nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "lists":
            y = F.linear(x, *self.qkv.parameters())
        else:
            y = self.qkv(x) * (3 if self.how == "asks" and not isinstance(self.qkv, nn.Linear) else 1)
        output: Tensor = x + self.proj(F.scaled_dot_product_attention(*y.chunk(3, -1)))
        return output


class Multihead(nn.Module):
    """May look at its attention, or call torch's function on what it holds."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.how, self.attention = how, nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        a = self.attention
        if self.how == "reads":
            y, _ = F.multi_head_attention_forward(
                *[x.transpose(0, 1)] * 3, a.embed_dim, a.num_heads, a.in_proj_weight, a.in_proj_bias, a.bias_k,
                a.bias_v, a.add_zero_attn, 0.0, a.out_proj.weight, a.out_proj.bias, training=self.training,
                use_separate_proj_weight=not a._qkv_same_embed_dim, q_proj_weight=a.q_proj_weight,
                k_proj_weight=a.k_proj_weight, v_proj_weight=a.v_proj_weight,
            )  # fmt: skip
            return x + y.transpose(0, 1)
        y = a(x, x, x)[0]
        return x + (-y if self.how == "asks" and not isinstance(a, nn.MultiheadAttention) else y)


class Blocks(nn.Module):
    """[n, l, 16] to logits [n, 5]."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.blocks, self.head = nn.Sequential(*blocks), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.blocks(x).mean(1))
        return output


CASES: dict[str, tuple[type[nn.Module], str]] = {
    "projection asks": (Attention, "asks"),
    "projection lists": (Attention, "lists"),
    "attention asks": (Multihead, "asks"),
    "attention reads": (Multihead, "reads"),
}


def blocks(case: str) -> Blocks:
    """The second of three blocks is not to be unpacked."""
    kind, how = CASES[case]
    torch.manual_seed(0)
    model = Blocks(kind(), kind(how), kind())
    randomised(model)
    return model


def inputs(count: int = 48) -> Tensor:
    return torch.randn(count, 5, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("case", CASES)
def test_only_what_changes_nothing_is_unpacked(case: str, tmp_path: Path) -> None:
    model, x = blocks(case), inputs()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    apart = taken_apart(model, x)
    assert torch.equal(torch.get_rng_state(), state)
    leaf = "qkv" if CASES[case][0] is Attention else "attention"
    assert list(unpacked_layers(apart.model)) == [f"blocks.{index}.{leaf}" for index in (0, 2)]
    assert apart.packed == {f"blocks.1.{leaf}"}
    assert apart.output is not None
    torch.testing.assert_close(apart.output, model(x), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

    student = compress(model, Budget(params=0.8), x.split(8), "kfac")
    held_out = inputs(96)[48:]
    with torch.no_grad():
        output = student(held_out)
        assert (output - model(held_out)).square().mean() < 0.1 * model(held_out).square().mean()
    assert f"blocks.1.{leaf}" not in student.unpacked
    student.save_pretrained(tmp_path / "s")
    loaded = from_pretrained(tmp_path / "s", blocks(case))
    with torch.no_grad():
        assert torch.equal(loaded(held_out), output)
        torch.testing.assert_close(student.to_dense()(held_out), output, rtol=1e-3, atol=1e-4)
    assert loaded.unpacked == student.unpacked


@pytest.mark.parametrize("case", ["attention asks", "attention reads"])
def test_attention_that_stays_packed_says_why(case: str) -> None:
    model, x = blocks(case), inputs()
    plan = prepare(model, x.split(8), "kfac")
    assert row(plan.spec, "blocks.1.attention").reason == ANOTHER
    rows = {layer["name"]: layer for layer in compress(model, Budget(params=0.8), x.split(8), "kfac").report["layers"]}
    assert rows["blocks.1.attention"]["reason"] == ANOTHER
    with pytest.raises(ModelError, match=r"blocks\.1\.attention\.out_proj \(its weight is read directly by"):
        compress(model, Budget(params=0.8), x.split(8), "kfac", strict=True)


def test_a_projection_that_stays_packed_is_a_layer_of_its_own() -> None:
    class Indexing(Attention):
        def forward(self, x: Tensor) -> Tensor:
            output: Tensor = super().forward(x) + len(list(self.qkv.children()))
            return output

    torch.manual_seed(0)
    spec = prepare(randomised(Blocks(Indexing(), Attention())), inputs().split(8), "kfac").spec
    names = {layer.name for layer in spec.layers}
    assert {"blocks.0.qkv", "blocks.1.qkv.q", "blocks.1.qkv.k", "blocks.1.qkv.v"} <= names
    assert "blocks.0.qkv.q" not in names


def test_a_renormalised_model_says_why_too() -> None:
    class Normed(Blocks):
        def __init__(self) -> None:
            super().__init__(Multihead(), Multihead("asks"))
            self.norm = nn.BatchNorm1d(16)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(self.norm(x.transpose(1, 2)).transpose(1, 2))

    torch.manual_seed(0)
    plan = prepare(randomised(Normed()), inputs().split(8), "kfac", renormalize=True)
    assert list(unpacked_layers(plan.teacher)) == ["blocks.0.attention"]
    assert row(plan.spec, "blocks.1.attention").reason == ANOTHER


def test_a_usual_model_is_run_once_more_and_one_without_such_layers_is_not() -> None:
    runs = Counter[str]()

    def counted(model: nn.Module, batch: Any) -> Tensor:
        runs["all"] += 1
        output: Tensor = model(batch)
        return output

    plain = nn.Sequential(nn.Linear(16, 16), nn.Flatten(), nn.Linear(80, 5)).eval()
    apart = taken_apart(plain, inputs(), counted)
    assert apart.model is plain
    assert (runs["all"], apart.packed, apart.output) == (0, frozenset(), None)
    apart = taken_apart(randomised(Pooled()), inputs(), counted)  # as it is, and unpacked: `replaceable` does not again
    assert (runs["all"], apart.packed) == (2, frozenset())


def test_a_model_that_draws_anew_each_time_is_unpacked() -> None:
    class Drawing(Pooled):
        generator = torch.Generator().manual_seed(0)

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + torch.randn(5, generator=self.generator)

    apart = taken_apart(randomised(Drawing()), inputs())
    assert list(unpacked_layers(apart.model)) == ["attention"]


def test_a_batch_that_the_model_itself_does_not_take() -> None:
    with pytest.raises(ModelError, match=r"received a batch of torch\.float32 \[4, 5, 8\] that the model does not"):
        taken_apart(randomised(Pooled()), torch.randn(4, 5, 8))


def test_lack_of_memory_is_no_reason() -> None:
    def fails(model: nn.Module, batch: Tensor) -> Tensor:
        if unpacked_layers(model):
            raise torch.OutOfMemoryError("no memory")
        output: Tensor = model(batch)
        return output

    with pytest.raises(torch.OutOfMemoryError):
        taken_apart(randomised(Pooled()), inputs(), fails)
