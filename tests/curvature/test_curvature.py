"""Curvature against explicit S (im2col by hand) and G (autograd sample by sample)."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypercompress.curvature import measure
from hypercompress.inspection import inspect
from hypercompress.kinds import kind_of
from hypercompress.specs import Side
from tests.explicit import NUMPY_MODES, columns, expect, measured
from tests.networks import Net, images


@pytest.mark.parametrize("channels", [(2, 5), (3, 40)], ids=["narrow", "wide"])
@pytest.mark.parametrize("mode", list(NUMPY_MODES))
@pytest.mark.parametrize(
    "geometry",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (2, 3), "padding": (1, 2), "stride": (2, 1)},
        {"kernel_size": 3, "padding": 2, "dilation": 2, "stride": 2, "bias": False},
        {"kernel_size": (3, 1), "padding": "same", "dilation": (2, 1)},
        {"kernel_size": 3, "padding": "valid"},
    ],
    ids=lambda g: str(g["padding"]),
)
def test_convolution(channels: tuple[int, int], mode: str, geometry: dict[str, Any]) -> None:
    conv = nn.Conv2d(*channels, padding_mode=mode, **geometry)
    model = Net(conv, nn.Tanh(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * channels[1], 3))
    x = images(3, channels[0], 6, 7)
    _, found = measured(model, x)
    kind = kind_of(conv)
    assert kind is not None
    rows = kind.input_rows(conv, x)
    torch.testing.assert_close(rows, columns(conv, x), rtol=0, atol=0)
    bias = 0 if conv.bias is None else conv.bias
    torch.testing.assert_close(kind.rows(conv(x)), rows @ conv.weight.flatten(1).T + bias)
    expect(model, "0", x, found["0"])
    expect(model, "4", x, found["4"])
    assert found["0"].side is (Side.INPUT if channels[1] == 40 and conv.weight[0].numel() < 40 else Side.OUTPUT)


@pytest.mark.parametrize("shape", [(3, 8), (8, 3)], ids=["narrow", "wide"])
def test_linear_on_tokens_sums_the_fisher_over_positions(shape: tuple[int, int]) -> None:
    class Tokens(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](x).tanh().mean(1))

    model = Tokens(nn.Linear(*reversed(shape)), nn.Linear(shape[0], 4))
    x = images(5, 6, shape[1])
    _, found = measured(model, x)
    expect(model, "0", x, found["0"])


@pytest.mark.parametrize("hidden", [4, 5])
def test_layer_called_twice_counts_both_calls(hidden: int) -> None:
    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self[1](self[0](self[0](x).tanh() + x))

    model = Twice(nn.Linear(hidden, hidden), nn.Linear(hidden, 3))
    x = images(5, hidden)
    _, found = measured(model, x)
    expect(model, "0", x, found["0"])


@pytest.mark.parametrize("shape", [(6, 1), (6, 1, 3, 3)], ids=["one output", "a map"])
def test_outputs_that_are_no_logits_get_a_gaussian_likelihood(shape: tuple[int, ...]) -> None:
    if len(shape) == 2:
        model = Net(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1))
        x = images(6, 4)
    else:
        model = Net(nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 1, 1))
        x = images(6, 2, 3, 3)
    assert model(x).shape == shape
    _, found = measured(model, x)
    expect(model, "0", x, found["0"])


def test_sampled_fisher_converges_to_the_exact_one() -> None:
    model, x = Net(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)), images(6, 4)
    spec = inspect(model, x)
    found = measure(model, spec, [x.repeat(500, 1)] * 4, seed=1)["0"]
    hidden = model[0](x)
    log_p = F.log_softmax(model[2](hidden.tanh()), 1)
    exact = torch.zeros(3, 3, dtype=torch.float64)
    for i in range(len(x)):
        for label in range(3):
            g = torch.autograd.grad(log_p[i, label], hidden, retain_graph=True)[0][i]
            exact += log_p[i, label].exp().detach() * torch.outer(g, g) / len(x)
    assert float((found.fisher - exact).norm() / exact.norm()) < 0.05


def test_a_head_that_is_called_twice_counts_the_other_call_too() -> None:
    class Twice(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](self[0](x).tanh() + x)

    model, x = Twice(nn.Linear(4, 4)), images(5, 4)
    _, found = measured(model, x)
    expect(model, "0", x, found["0"])


def test_batches_of_any_size_give_the_same_statistics() -> None:
    model, x = Net(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)), images(12, 5)
    spec = inspect(model, x)
    whole, parts = (measure(model, spec, batches, seed=2)["0"] for batches in ([x], list(x.split(4))))
    for name in ("signal", "mean", "fisher"):  # outputs are one number, so the draws are the same sequence
        torch.testing.assert_close(
            getattr(whole, name), getattr(parts, name), rtol=0.5 if name == "fisher" else 1e-7, atol=1e-7
        )


def test_same_seed_same_bits_and_another_seed_another_draw() -> None:
    model, x = Net(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), images(12, 5)
    spec = inspect(model, x)
    a, b, c = (measure(model, spec, [x], seed=seed)["0"] for seed in (0, 0, 1))
    assert torch.equal(a.fisher, b.fisher)
    assert torch.equal(a.signal, c.signal)
    assert not torch.equal(a.fisher, c.fisher)


def test_integer_inputs_are_measured() -> None:
    model = nn.Sequential(nn.Embedding(7, 8), nn.Flatten(), nn.Linear(24, 5)).double()
    x = torch.randint(7, (6, 3), generator=torch.Generator().manual_seed(0))
    _, found = measured(model, x)
    expect(model, "2", x, found["2"])


def test_inputs_far_from_zero_keep_their_variance() -> None:
    """Ten thousand and one: in float32 a sum of squares has no digit left of the one."""
    model, x = Net(nn.Linear(6, 9)), images(200, 6) + 1e4
    _, wanted = measured(model, x)
    _, found = measured(model.float(), x.float())
    wanted, found = wanted["0"], found["0"]
    assert found.signal.dtype is torch.float64
    variances = [c.signal - c.mean[:, None] * c.mean for c in (wanted, found)]
    torch.testing.assert_close(variances[1], variances[0], rtol=1e-2, atol=1e-2)


def test_input_channels_of_a_strided_convolution() -> None:
    """S of one position, the sum over taps of ``W_t^T G W_t`` and of ``W_t^T W_t``; each column's own mean."""
    conv = nn.Conv2d(8, 6, 3, padding=1, stride=2)
    model, x = Net(conv, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)), images(5, 8, 6, 7)
    found = measure(model, inspect(model, x), [x[:3], x[3:]])["0"]
    assert found.inputs is not None
    torch.testing.assert_close(found.columns, columns(conv, x).mean(0))
    pixels, taps = x.movedim(1, -1).flatten(0, -2), conv.weight.detach().flatten(2)
    torch.testing.assert_close(found.inputs.signal, pixels.T @ pixels / len(pixels))
    torch.testing.assert_close(found.inputs.mean, pixels.mean(0))
    torch.testing.assert_close(found.inputs.fisher, torch.einsum("oct,op,pdt->cd", taps, found.fisher, taps))
    torch.testing.assert_close(found.inputs.gram, torch.einsum("oct,odt->cd", taps, taps))
