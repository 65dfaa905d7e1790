"""Unpacked attention is `nn.MultiheadAttention`: same arguments, same results, same gradients, whatever the options."""

import copy
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hypercompress.packed.attention import UnpackedAttention


@dataclass(frozen=True)
class Case:
    """A layer with the inputs and the options of one call."""

    packed: nn.MultiheadAttention
    inputs: tuple[Tensor, Tensor, Tensor]
    options: dict[str, Any]


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def mask(kind: str, *shape: int) -> Tensor | None:
    """A boolean mask never hides the first key: nothing is left of a query that sees none."""
    if kind == "none":
        return None
    if kind == "float":
        return random(*shape)
    hidden = random(*shape) > 0
    hidden[..., 0] = False
    return hidden


@st.composite
def calls(draw: st.DrawFn) -> Case:
    heads, width = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    e, kdim, vdim = heads * width, draw(st.sampled_from([None, 3, 5])), draw(st.sampled_from([None, 4]))
    switches = {name: draw(st.booleans()) for name in ("bias", "add_bias_kv", "add_zero_attn", "batch_first")}
    packed = nn.MultiheadAttention(
        e, heads, draw(st.sampled_from([0.0, 0.4])), kdim=kdim, vdim=vdim, dtype=torch.float64, **switches
    ).train(draw(st.booleans()))
    for number, parameter in enumerate(packed.parameters()):  # torch starts the biases at zero
        parameter.data = random(*parameter.shape) + number
        parameter.data /= parameter.shape[-1]
    n, length, keys = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    batched, same = draw(st.booleans()), draw(st.booleans()) and kdim is None and vdim is None
    keys = length if same else keys

    def tokens(count: int, channels: int) -> Tensor:
        shape = (n, count) if switches["batch_first"] else (count, n)
        return random(*(shape if batched else (count,)), channels)

    query = tokens(length, e)
    inputs = (query, query, query) if same else (query, tokens(keys, kdim or e), tokens(keys, vdim or e))
    kind = draw(st.sampled_from(["bool", "float"]))  # torch warns of two masks of two kinds
    padding = mask(draw(st.sampled_from(["none", kind])), *((n, keys) if batched else (keys,)))
    each = (n * heads if batched else heads,) if draw(st.booleans()) else ()
    attention = mask(draw(st.sampled_from(["none", kind])), *each, length, keys)
    options = {name: draw(st.booleans()) for name in ("need_weights", "average_attn_weights")}
    causal = attention is not None and draw(st.booleans())
    return Case(packed, inputs, {"key_padding_mask": padding, "attn_mask": attention, "is_causal": causal, **options})


def run(layer: nn.Module, case: Case) -> tuple[list[Tensor | None], list[Tensor]]:
    """Both outputs, and the gradients of a random function of them by input."""
    leaves = {id(x): x.clone().requires_grad_() for x in case.inputs}  # one tensor three times stays one
    torch.manual_seed(0)
    outputs = layer(*(leaves[id(x)] for x in case.inputs), **case.options)
    sum((random(*y.shape) * y).sum() for y in outputs if y is not None).backward()
    return list(outputs), [x.grad for x in leaves.values() if x.grad is not None]


def gradients(layer: nn.Module) -> dict[str, Tensor | None]:
    """Gradients by the names and in the shapes of the packed layer."""
    if isinstance(layer, nn.MultiheadAttention):
        return {name: p.grad for name, p in layer.named_parameters()}
    grads = {name: p.grad for name, p in layer.named_parameters()}
    three = [f"{x}_proj" for x in "qkv"]
    joined = layer.kdim == layer.vdim == layer.embed_dim
    for kind in ("weight", "bias"):
        parts = [grads.pop(f"{name}.{kind}", None) for name in three]
        if parts[0] is None:
            continue
        if joined or kind == "bias":
            grads[f"in_proj_{kind}"] = torch.cat(parts)
        else:
            grads |= {f"{name}_weight": part for name, part in zip(three, parts, strict=True)}
    return grads


def macs(layer: nn.Module, case: Case) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        copy.deepcopy(layer).requires_grad_(False)(*case.inputs, **case.options)
    return int(counter.get_total_flops())


@settings(max_examples=400)
@given(calls())
def test_results_and_gradients_are_those_of_torch(case: Case) -> None:
    unpacked = UnpackedAttention(case.packed)
    (wanted, wanted_grads), (got, got_grads) = run(case.packed, case), run(unpacked, case)
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(got_grads, wanted_grads, rtol=1e-10, atol=1e-10)
    theirs, ours = gradients(case.packed), gradients(unpacked)
    assert theirs.keys() == ours.keys()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-10, atol=1e-10, msg=name)


@settings(max_examples=100)
@given(calls())
def test_parameters_cost_and_the_way_back(case: Case) -> None:
    unpacked = UnpackedAttention(case.packed)
    state = torch.get_rng_state()
    again = unpacked.pack()
    assert torch.equal(torch.get_rng_state(), state)
    assert repr(again) == repr(case.packed)
    assert {k: v for k, v in vars(again).items() if k[0] != "_"} == {
        k: v for k, v in vars(case.packed).items() if k[0] != "_"
    }
    theirs, ours = case.packed.state_dict(), again.state_dict()
    assert theirs.keys() == ours.keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)
    assert not {p.data_ptr() for p in unpacked.parameters()} & {p.data_ptr() for p in again.parameters()}
    count = sum(p.numel() for p in case.packed.parameters())
    assert count == sum(p.numel() for p in unpacked.parameters())
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # nobody counts what torch's fused kernel does
    try:
        assert macs(unpacked, case) == macs(case.packed, case)
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@pytest.mark.parametrize("kdim", [None, 3])
def test_what_code_looks_at_is_there(kdim: int | None) -> None:
    packed = nn.MultiheadAttention(8, 2, kdim=kdim)
    unpacked = UnpackedAttention(packed)
    for name in ("in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
        theirs, ours = getattr(packed, name), getattr(unpacked, name)
        assert ours is None if theirs is None else torch.equal(ours, theirs), name


def test_frozen_parameters_stay_frozen() -> None:
    packed = nn.MultiheadAttention(8, 2, add_bias_kv=True)
    for name in ("in_proj_weight", "bias_k"):
        getattr(packed, name).requires_grad_(False)
    packed.out_proj.bias.requires_grad_(False)
    unpacked = UnpackedAttention(packed)
    frozen = {name for name, p in unpacked.named_parameters() if not p.requires_grad}
    assert frozen == {"q_proj.weight", "k_proj.weight", "v_proj.weight", "out_proj.bias", "bias_k"}
    again = {name: p.requires_grad for name, p in unpacked.pack().named_parameters()}
    assert again == {name: p.requires_grad for name, p in packed.named_parameters()}


def test_the_packed_parameters_can_be_read() -> None:
    packed = nn.MultiheadAttention(8, 2)
    nn.init.normal_(packed.in_proj_bias)
    unpacked = UnpackedAttention(packed)
    assert torch.equal(unpacked.in_proj_weight, packed.in_proj_weight)
    assert torch.equal(unpacked.in_proj_bias, packed.in_proj_bias)
    other = UnpackedAttention(nn.MultiheadAttention(8, 2, bias=False, kdim=3))
    assert other.in_proj_weight is None
    assert other.in_proj_bias is None


def test_a_hint_without_its_mask_is_refused_as_torch_does() -> None:
    packed, x = nn.MultiheadAttention(8, 2), torch.randn(3, 2, 8)
    for layer in (packed, UnpackedAttention(packed)):
        with pytest.raises(RuntimeError, match="is_causal"):
            layer(x, x, x, is_causal=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype: torch.dtype) -> None:
    packed, x = nn.MultiheadAttention(16, 2, batch_first=True).eval(), torch.randn(2, 5, 16)
    hidden = torch.arange(5)[None] >= torch.tensor([5, 3])[:, None]
    unpacked = UnpackedAttention(packed)
    for need in (True, False):
        options = {"key_padding_mask": hidden, "need_weights": need}
        with torch.autocast("cpu", dtype):
            got, wanted = (layer(x, x, x, **options)[0] for layer in (unpacked, packed))
        assert got.dtype is wanted.dtype
        torch.testing.assert_close(got, wanted, rtol=2e-2, atol=2e-2)
        half = x.to(dtype)
        theirs, ours = copy.deepcopy(packed).to(dtype), copy.deepcopy(unpacked).to(dtype)
        got, wanted = (layer(half, half, half, **options)[0] for layer in (ours, theirs))
        assert got.dtype is dtype
        torch.testing.assert_close(got, wanted, rtol=2e-2, atol=2e-2)
