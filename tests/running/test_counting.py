"""Multiply-accumulates against hand counts, and the same whichever kernels run."""

from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import deform_conv2d

from hypercompress.inspection import inspect
from hypercompress.running.counting import counting

X = torch.randn(3, 7, 12, generator=torch.Generator().manual_seed(0))
B, T, D = X.shape


def attention(x: Tensor) -> Tensor:
    q = x.reshape(B, T, 4, 3).transpose(1, 2)
    return F.scaled_dot_product_attention(q, q, q)


def grouped_attention(x: Tensor) -> Tensor:
    q = x.reshape(B, T, 4, 3).transpose(1, 2)
    return F.scaled_dot_product_attention(q, q[:, :2], q[:, :2], enable_gqa=True)


CASES: dict[str, tuple[Callable[[Tensor], object], int]] = {
    "attention": (attention, 2 * B * T * T * D),
    "attention of few keys": (grouped_attention, 2 * B * T * T * D),
    "matrix and vector": (lambda x: x @ torch.ones(D), B * T * D),
    "added matrix and vector": (lambda x: torch.addmv(torch.ones(T), x[0], torch.ones(D)), T * D),
    "two vectors": (lambda x: x[0, 0] @ x[0, 1], D),
    "LSTM": (nn.LSTM(D, 5, batch_first=True).eval(), B * T * 4 * 5 * (D + 5)),
    "LSTM of two layers, both ways": (
        nn.LSTM(D, 5, num_layers=2, bidirectional=True).eval(),
        B * T * 4 * 5 * 2 * ((D + 5) + (10 + 5)),
    ),
    "GRU": (nn.GRU(D, 5, batch_first=True).eval(), B * T * 3 * 5 * (D + 5)),
    "bilinear": (lambda x: nn.Bilinear(D, D, 5)(x, x), B * T * D * D * 5),
    "packed attention": (
        lambda x: nn.MultiheadAttention(D, 4, batch_first=True).eval()(x, x, x, need_weights=False),
        B * T * D * 4 * D + 2 * B * T * T * D,
    ),
    "encoder layer": (
        nn.TransformerEncoderLayer(D, 4, 20, batch_first=True).eval(),
        B * T * D * 4 * D + 2 * B * T * T * D + 2 * B * T * D * 20,
    ),
    "sums of products": (lambda x: torch.addbmm(torch.ones(T, T), x, x.mT), B * T * D * T),
    "distances": (
        lambda x: torch.cdist(x, torch.ones(B, 5, D), compute_mode="donot_use_mm_for_euclid_dist"),
        B * T * D * 5,
    ),
    "deformable convolution": (
        lambda x: deform_conv2d(x[:, :4, :, None], torch.zeros(B, 6, D, 1), torch.ones(5, 4, 3, 1), padding=(1, 0)),
        B * D * 5 * 4 * 3,
    ),
    "matrices": (lambda x: x @ x.mT, B * T * T * D),
}


@pytest.mark.parametrize(("run", "expected"), CASES.values(), ids=CASES)
def test_a_hand_count(run: Callable[[Tensor], object], expected: int) -> None:
    with torch.no_grad(), counting() as counter:
        run(X)
    assert counter.get_total_flops() == 2 * expected


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("test_vit", {"img_size": 64}),
        ("test_vit2", {}),
        ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 4}),
    ],
)
def test_a_transformer_costs_the_same_with_any_kernel(name: str, args: dict[str, int]) -> None:
    """Against torch's own counter and attention written as two products, which it knows on every device."""
    model, x = timm.create_model(name, pretrained=False, **args).eval().requires_grad_(False), torch.randn(2, 3, 64, 64)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as plain:
        model(x)
    assert inspect(model, x).macs == plain.get_total_flops() // 4
    linear = sum(layer.dense_macs for layer in inspect(model, x).layers)
    assert inspect(model, x).macs > linear


def test_the_fast_path_is_as_it_was() -> None:
    for enabled in (False, True):
        torch.backends.mha.set_fastpath_enabled(enabled)
        with pytest.raises(RuntimeError, match="out of luck"), counting():
            raise RuntimeError("out of luck")
        assert torch.backends.mha.get_fastpath_enabled() is enabled
