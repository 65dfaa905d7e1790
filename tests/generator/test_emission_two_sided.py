"""Emission of layers that are factored on both sides: scores, masks and gradients against the written formulas."""

import pytest
import torch

from hypercompress.generator.emission import (
    TEMPERATURE,
    EmittedInput,
    EmittedLayer,
    Scores,
    carried,
    scores,
    straight_through,
)
from hypercompress.generator.heads import Outputs
from hypercompress.generator.start import start_of
from hypercompress.inspection import inspect
from hypercompress.sketch import sketch
from hypercompress.specs import LayerSpec, ModelSpec, RankPlan, Status, Unit
from hypercompress.tokens import BANDS
from tests.allocated import layer, model_of
from tests.drawn import random
from tests.networks import Net, images

OUT, CHANNELS, TAPS, RANK, INNER = 6, 5, 4, 3, 2


def emitted(mask: torch.Tensor, inner: torch.Tensor) -> EmittedLayer:
    left, right = random(CHANNELS, len(inner)), random(len(inner), CHANNELS)
    return EmittedLayer(
        random(OUT, len(mask)), random(len(mask), CHANNELS * TAPS), mask, None, EmittedInput(left, right, inner), TAPS
    )


def test_masked_directions_are_those_that_the_factors_leave_out() -> None:
    made = emitted(torch.tensor([1.0] * RANK + [0.0]).double(), torch.tensor([1.0] * INNER + [0.0] * 2).double())
    torch.testing.assert_close(made.matrix(), made.factors(RANK, INNER).product())


def test_gradient_of_the_matrix_in_the_masks_of_either_side() -> None:
    """``M_odt = sum over k, c, q of E_ok m_k R_kct L_cq n_q P_qd``, so each mask's gradient is the sum without it."""
    mask, inner = (torch.rand(n).double().requires_grad_() for n in (RANK, INNER))
    made, probe = emitted(mask, inner), random(OUT, CHANNELS * TAPS)
    assert made.inner is not None
    found = torch.autograd.grad((made.matrix() * probe).sum(), (mask, inner))
    kernel, wanted = made.reduce.unflatten(1, (CHANNELS, TAPS)), probe.unflatten(1, (CHANNELS, TAPS))
    parts = (wanted, made.expand, mask.detach(), kernel, made.inner.left, inner.detach(), made.inner.right)
    for side, rest in ((0, "k"), (1, "q")):
        factors = [part for place, part in enumerate(parts) if place != (2, 5)[side]]
        letters = ["odt", "ok", "k", "kct", "cq", "q", "qd"]
        del letters[(2, 5)[side]]
        torch.testing.assert_close(found[side], torch.einsum(f"{','.join(letters)}->{rest}", *factors))


@pytest.mark.parametrize("unit", [Unit.PARAMS, Unit.MACS])
def test_mask_gradients_trade_both_sides_at_constant_cost(unit: Unit) -> None:
    """That of the sigmoid, less what moves the level: ``diag(s) - s (c s)^T / (c s)`` with each side's own costs."""
    before, after = (1, 1) if unit is Unit.PARAMS else (36, 16)
    conv = LayerSpec(
        "a", "conv2d", Status.FACTORED, "", 8, 54, 16, 8 * 54, 0, False, axis=1, taps=9, input_positions=36
    )
    spec: ModelSpec = model_of([conv, layer("b", 12, 10)])
    assert conv.projects
    ranks, q, channels = {"a": 2, "b": 3}, 1, 6
    energies = [torch.rand(n).double().sort(descending=True).values.requires_grad_() for n in (8, 10, channels)]
    scored = Scores({"a": energies[0], "b": energies[1]}, {"a": energies[2]})
    masks = straight_through(spec, scored, RankPlan(ranks, unit, 0, 0.0, None, {"a": q}))
    found = [masks.outputs["a"], masks.outputs["b"], masks.inputs["a"]]
    kept = [2, 3, q]
    steps = [after * (9 * q + 8), 12 + 10, before * channels + after * 9 * 2]
    sizes = [carried(len(energy), rank) for energy, rank in zip(energies, kept, strict=True)]
    assert [len(mask) for mask in found] == sizes
    h = torch.cat([(e.detach()[:n] / s).log() for e, n, s in zip(energies, sizes, steps, strict=True)])
    c = torch.cat([torch.full((n,), float(s)).double() for n, s in zip(sizes, steps, strict=True)])
    hard = torch.cat([torch.arange(n) < rank for n, rank in zip(sizes, kept, strict=True)])
    torch.testing.assert_close(torch.cat(found).detach(), hard.double())
    level = (h[hard].quantile(0.1) + h[~hard].quantile(0.9)) / 2
    slope = torch.sigmoid((h - level) / TEMPERATURE)
    slope = slope * (1 - slope) / TEMPERATURE
    probe = random(len(h))
    got = torch.autograd.grad((torch.cat(found) * probe).sum(), energies)
    by_height = torch.cat([(g * e.detach())[:n] for g, e, n in zip(got, energies, sizes, strict=True)])
    torch.testing.assert_close(by_height, probe * slope - (probe @ slope) / (c @ slope) * c * slope)


def test_scores_of_input_channels_are_bent_by_both_weights() -> None:
    model, x = Net(torch.nn.Conv2d(8, 6, 3), torch.nn.Flatten(), torch.nn.Linear(24, 3)), images(8, 8, 4, 4)
    spec = inspect(model, x)
    start = start_of(spec, sketch(model, spec, [x]))
    n = len(spec.candidates)
    given = Outputs(*(torch.zeros(n) for _ in range(6)), torch.zeros(n, BANDS), torch.zeros(n, 4))
    given.weight.fill_(0.7)
    given.inner.fill_(0.2)
    found = scores(spec, start, given).inputs
    assert set(found) == {"0"}
    torch.testing.assert_close(found["0"], start.inputs["0"] * torch.tensor(0.9).double().exp(), rtol=1e-6, atol=0)
