"""Every feature of the tokens of a fixed network from its formula."""

from math import exp, log, log2, log10

import pytest
import torch
from torch import Tensor, nn

from hypercompress.allocation import allocate
from hypercompress.generator.hypernetwork import tokens_of
from hypercompress.generator.start import Start, start_of
from hypercompress.inspection import inspect
from hypercompress.sketch import sketch
from hypercompress.specs import Budget, LayerSpec, ModelSpec, RankPlan, Sketch
from hypercompress.tokens import BANDS, TAILS, Tokens, effective_rank
from tests.networks import Net, images

SHARE = 0.2
Found = tuple[ModelSpec, dict[str, Sketch], Start, RankPlan, Tokens]


@pytest.fixture(scope="module")
def found() -> Found:
    """Of a convolution with a norm behind it, one with a norm before it that is factored on both sides, and a head."""
    model = Net(
        nn.Conv2d(3, 12, 3, bias=False),
        nn.BatchNorm2d(12, eps=0.1),
        nn.ReLU(),
        nn.Conv2d(12, 20, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(20, 6),
    ).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.linspace(0.5, 2, 12))
        model[1].running_var.copy_(torch.linspace(2, 0.3, 12))
    x, budget = images(24, 3, 7, 7), Budget(params=SHARE)
    spec = inspect(model, x[:2])
    sketches = sketch(model, spec, [x])
    start = start_of(spec, sketches)
    plan = allocate(spec, start.energies, budget, nats=False, inputs=start.inputs)
    assert set(plan.ranks) == {layer.name for layer in spec.candidates}
    assert set(plan.input_ranks) == {"3"}
    return spec, sketches, start, plan, tokens_of(spec, sketches, start, budget, refit=True)


def step(layer: LayerSpec, plan: RankPlan) -> int:
    """Parameters of one more rank."""
    q = plan.input_ranks.get(layer.name)
    return layer.out + (layer.d if q is None else layer.taps * q)


def lost(name: str, start: Start, plan: RankPlan) -> float:
    inner = float(start.inputs[name][plan.input_ranks[name] :].sum()) if name in plan.input_ranks else 0.0
    return float(start.energies[name][plan.ranks[name] :].sum()) + inner


def test_of_layers(found: Found) -> None:
    spec, sketches, start, plan, tokens = found
    gone = {layer.name: lost(layer.name, start, plan) for layer in spec.candidates}
    totals = {layer.name: float(start.energies[layer.name].sum()) for layer in spec.candidates}
    mean = exp(sum(map(log, totals.values())) / 3)
    for row, layer in zip(tokens.layers, spec.candidates, strict=True):
        name, conv, rank = layer.name, layer.name != "6", plan.ranks[layer.name]
        energy, total, curvature = start.energies[name], totals[name], start.curvatures[name]
        macs = {"0": 25, "3": 9, "6": 1}[name]
        wanted = [float(not conv), 0.0, float(conv), log2(layer.out) / 10, log2(layer.d) / 12]
        wanted += [log2(layer.out / layer.d) / 4, log2(macs) / 12, 0.0, layer.depth / max(x.depth for x in spec.layers)]
        wanted += [log10(layer.out * layer.d / spec.params + 1e-6) / 4]
        wanted += [log10(macs * layer.out * layer.d / spec.macs + 1e-6) / 4]
        wanted += [log10((layer.out + layer.d) / spec.params + 1e-8) / 6, float(name != "0")]
        wanted += [log10(total / mean) / 2]
        wanted += [log10(float(energy[int(share * len(energy)) :].sum()) / total + 1e-6) / 4 for share in TAILS]
        halves = (curvature.signal, curvature.fisher, curvature.gram)
        wanted += [effective_rank(energy), *(effective_rank(half.diagonal()) for half in halves)]
        wanted += [rank / layer.full_rank, 0.0, log10(gone[name] / total + 1e-6) / 4]
        wanted += [log10(gone[name] / sum(gone.values()) + 1e-4) / 4]
        if name in start.inputs:
            q, inner = plan.input_ranks.get(name, layer.channels), start.inputs[name]
            wanted += [1.0, float(name == "3"), q / layer.channels, log10(float(inner[q:].sum()) / total + 1e-6) / 4]
            wanted += [effective_rank(inner)]
        else:
            wanted += [0.0] * 5
        norm = sketches[name].follower
        gain = 0.0 if norm is None else float((norm.weight / (norm.variance + norm.eps).sqrt()).log().mean()) / 5
        wanted += [float(norm is not None), gain, 1.0]
        torch.testing.assert_close(row, torch.tensor(wanted), rtol=1e-5, atol=1e-6)


def test_of_bands_of_directions(found: Found) -> None:
    spec, _, start, plan, tokens = found
    firsts = [float(start.energies[x.name][plan.ranks[x.name]]) / step(x, plan) for x in spec.candidates]
    level = exp(sum(map(log, firsts)) / 3)
    for table, layer in zip(tokens.sketches, spec.candidates, strict=True):
        frame, energy, rank = start.directions.outputs[layer.name], start.energies[layer.name], plan.ranks[layer.name]
        mean = (frame.right @ start.curvatures[layer.name].mean).square()
        columns = (
            (energy / energy.sum()).log10() / 8,
            (energy / (step(layer, plan) * level)).log10() / 4,
            (frame.left.norm(dim=0) * frame.right.norm(dim=1)).log10() / 3,
            (mean / mean.sum()).clamp_min(1e-8).log10() / 8,
        )
        edges = [0.0, *(share * rank for share in (0.25, 0.5, 0.75, 1, 1.25, 1.6, 2.2)), float("inf")]
        places = torch.arange(layer.full_rank)
        for band in range(BANDS):
            members = (places >= edges[band]) & (places < edges[band + 1])
            size = float(members.double().mean())
            means = [float(column[members].mean()) if size else 0.0 for column in columns]
            wanted = Tensor([*means, size, float(size > 0)])
            torch.testing.assert_close(table[band], wanted, rtol=1e-5, atol=1e-6)


def test_of_the_budget(found: Found) -> None:
    spec, _, start, plan, tokens = found
    gone = sum(lost(layer.name, start, plan) for layer in spec.candidates)
    total = sum(float(energy.sum()) for energy in start.energies.values())
    wanted = [SHARE, log10(SHARE) / 2, 1.0, 1.0, log10(gone / total + 1e-6) / 4, log10(gone + 1e-6) / 4]
    torch.testing.assert_close(tokens.budget, torch.tensor(wanted), rtol=1e-5, atol=1e-6)
    assert tokens.order.tolist() == [0, 1, 2]
