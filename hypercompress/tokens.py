"""What the hypernetwork reads: tokens of a network that no renaming, permutation or sign flip of its neurons changes.

One budget token; per candidate layer one layer token (shape, cost, place, spectrum, norms, the analytic start) and
`BANDS` sketch tokens. A band is a range of directions placed around the analytic rank r, where decisions are made:
four bands of kept directions and four of discarded ones.

Letters: ``n`` candidate layers, ``m = min(out, d)``, ``b = BANDS``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hypercompress.factorize import Frame, applied
from hypercompress.specs import (
    Budget,
    Curvature,
    LayerSpec,
    ModelSpec,
    NormStatistics,
    RankPlan,
    Side,
    Sketch,
    Unit,
)

KEPT_EDGES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of r
LOST_EDGES = (1.0, 1.25, 1.6, 2.2, math.inf)  # of r
BANDS = len(KEPT_EDGES) + len(LOST_EDGES) - 2
TAILS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 3 / 4)  # of m
LAYER_FEATURES = 37
SKETCH_FEATURES = 6
BUDGET_FEATURES = 6
CHANNEL_FEATURES = 5
TINY = 1e-12


@dataclass(frozen=True)
class Tokens:
    """Features of one network at one budget, float32; ``order`` is the place of each layer in the forward pass."""

    layers: Float[Tensor, "n f_layer"]
    sketches: Float[Tensor, "n b f_sketch"]
    budget: Float[Tensor, " f_budget"]
    order: Float[Tensor, " n"]


@dataclass(frozen=True)
class Known:
    """What the analytic start knows of each candidate layer.

    Args:
        curvatures: measured or guessed.
        frames: directions of the layers' matrices.
        energies: of these directions.
        inputs: energies of the directions of the input channels, where these may be factored too.
    """

    curvatures: Mapping[str, Curvature]
    frames: Mapping[str, Frame]
    energies: Mapping[str, Tensor]
    inputs: Mapping[str, Tensor]


def bands(m: int, rank: int) -> Int[Tensor, " m"]:
    """Band of each of ``m`` directions around ``rank``."""
    edges = [e * rank for e in KEPT_EDGES[1:]] + [e * rank for e in LOST_EDGES[1:-1]]
    places = torch.arange(m, dtype=torch.float64)
    return torch.bucketize(places, torch.tensor(edges, dtype=torch.float64), right=True).clamp_max(BANDS - 1)


def tokenize(
    spec: ModelSpec,
    sketches: Mapping[str, Sketch],
    known: Known,
    start: RankPlan,
    budget: Budget,
    refit: bool,
) -> Tokens:
    """Tokens of a teacher at a budget.

    Args:
        known: what the analytic start is made of.
        start: its ranks at this budget.
        refit: whether the student will be refitted (`reconstruction/sequential.py`).
    """
    candidates, energies, curvatures = spec.candidates, known.energies, known.curvatures
    totals = torch.tensor([float(energies[layer.name].sum()) for layer in candidates], dtype=torch.float64)
    alive = totals[totals > 0]  # a layer on which nothing depends has no logarithm, and says nothing of the others
    mean_total = float(alive.log().mean().exp()) if len(alive) else 1.0
    lost = [_lost(layer.name, known, start) for layer in candidates]
    level = _water_level(candidates, energies, start, budget.unit)
    rows, tables = [], []
    for layer, total, gone in zip(candidates, totals.tolist(), lost, strict=True):
        name = layer.name
        rank = start.ranks.get(name)
        features = [
            *_shape(layer, spec, budget.unit),
            *_spectrum(energies[name], curvatures[name], total / max(mean_total, TINY)),
            *_start(layer, rank, gone, sum(lost), total),
            *_inputs(layer, start.input_ranks.get(name), known.inputs.get(name), total),
            *_norms(sketches[name]),
            1.0 if sketches[name].curvature is not None else 0.0,
        ]
        rows.append(features)
        slope = energies[name].double() / max(layer.step(budget.unit, start.input_ranks.get(name)) * level, TINY)
        tables.append(_table(layer, rank, known.frames[name], energies[name], slope, curvatures[name]))
    share = budget.share
    head = [
        share,
        math.log10(share) / 2,
        1.0 if budget.unit is Unit.PARAMS else 0.0,
        1.0 if refit else 0.0,
        math.log10(sum(lost) / max(float(totals.sum()), TINY) + 1e-6) / 4,
        math.log10(sum(lost) + 1e-6) / 4,
    ]
    return Tokens(
        torch.tensor(rows, dtype=torch.float32).reshape(len(candidates), LAYER_FEATURES),
        torch.stack(tables) if tables else torch.zeros(0, BANDS, SKETCH_FEATURES),
        torch.tensor(head, dtype=torch.float32),
        torch.arange(len(candidates), dtype=torch.float32),
    )


def _lost(name: str, known: Known, start: RankPlan) -> float:
    rank, inner = start.ranks.get(name), start.input_ranks.get(name)
    if rank is None:
        return 0.0
    lost = float(known.energies[name][rank:].sum())
    return lost if inner is None else lost + float(known.inputs[name][inner:].sum())


def _water_level(
    candidates: tuple[LayerSpec, ...], energies: Mapping[str, Tensor], start: RankPlan, unit: Unit
) -> float:
    """Geometric mean over layers of the energy per cost of the first discarded direction."""
    found = [
        math.log(
            max(
                float(energies[layer.name][start.ranks[layer.name]])
                / layer.step(unit, start.input_ranks.get(layer.name)),
                TINY * TINY,
            )
        )
        for layer in candidates
        if start.ranks.get(layer.name, layer.full_rank) < layer.full_rank
    ]
    return math.exp(sum(found) / len(found)) if found else 1.0


def _shape(layer: LayerSpec, spec: ModelSpec, unit: Unit) -> list[float]:
    convolves = layer.axis == 1
    return [
        float(not convolves),
        float(convolves and layer.taps == 1),
        float(layer.taps > 1),
        math.log2(layer.out) / 10,
        math.log2(layer.d) / 12,
        math.log2(layer.rows / layer.d) / 4,
        math.log2(max(layer.positions, 1)) / 12,
        float(layer.strided),
        layer.depth / max(1, *(other.depth for other in spec.layers)),
        math.log10(layer.dense_params / max(spec.params, 1) + 1e-6) / 4,
        math.log10(layer.dense_macs / max(spec.macs, 1) + 1e-6) / 4,
        math.log10(layer.rank_cost(unit) / max(spec.total(unit), 1) + 1e-8) / 6,
        float(layer.bias),
    ]


def effective_rank(values: Float[Tensor, " m"]) -> float:
    """``exp(entropy) / m`` of a spectrum, in (0, 1] (Roy & Vetterli 2007)."""
    share = values.double().clamp_min(0)
    share = (share / share.sum().clamp_min(TINY * TINY)).clamp_min(TINY)
    return float((-(share * share.log()).sum()).exp()) / len(values)


def _spectrum(energy: Tensor, curvature: Curvature, relative: float) -> list[float]:
    energy = energy.double().cpu()
    tail = energy.flip(0).cumsum(0).flip(0) / energy.sum().clamp_min(TINY * TINY)
    at = [min(len(energy) - 1, int(share * len(energy))) for share in TAILS]
    # The diagonal stands for the spectrum of S and G: it is cheap and invariant to permutation.
    return [
        max(-3.0, min(3.0, math.log10(max(relative, TINY)) / 2)),
        *(math.log10(float(tail[i]) + 1e-6) / 4 for i in at),
        effective_rank(energy),
        *(
            effective_rank(half.diagonal(dim1=-2, dim2=-1).flatten().cpu())
            for half in (curvature.signal, curvature.fisher, curvature.gram)
        ),
    ]


def _start(layer: LayerSpec, rank: int | None, lost: float, all_lost: float, total: float) -> list[float]:
    return [
        1.0 if rank is None else rank / layer.full_rank,
        float(rank is None),
        math.log10(lost / max(total, TINY * TINY) + 1e-6) / 4,
        math.log10(lost / max(all_lost, TINY * TINY) + 1e-4) / 4,
    ]


def _inputs(layer: LayerSpec, rank: int | None, energy: Tensor | None, total: float) -> list[float]:
    """The other side of a layer that may be factored on both."""
    if energy is None:
        return [0.0] * 5
    lost = 0.0 if rank is None else float(energy[rank:].sum())
    return [
        1.0,
        float(rank is not None),
        1.0 if rank is None else rank / layer.channels,
        math.log10(lost / max(total, TINY * TINY) + 1e-6) / 4,
        effective_rank(energy.cpu()),
    ]


def _norms(sketch: Sketch) -> list[float]:
    def gain(norm: NormStatistics | None) -> float:
        if norm is None:
            return 0.0
        return float((norm.weight.abs() / (norm.variance + norm.eps).sqrt()).clamp_min(1e-6).log().mean()) / 5

    follows = sketch.follower is not None and sketch.follower.moments
    return [float(follows), gain(sketch.follower)]


def _table(
    layer: LayerSpec, rank: int | None, frame: Frame, energy: Tensor, slope: Tensor, curvature: Curvature
) -> Float[Tensor, "b f_sketch"]:
    """Averages over each band of directions."""
    m = layer.full_rank
    band = bands(m, m if rank is None else rank).to(energy.device)
    share = energy.double() / energy.double().sum().clamp_min(TINY * TINY)
    mean = applied(frame.right.double(), curvature.mean.double()) ** 2
    mean = mean / mean.sum().clamp_min(TINY * TINY)
    spread = frame.left.double().norm(dim=-2) * frame.right.double().norm(dim=-1)
    if layer.groups > 1:  # a direction of the layer is one of each group
        mean, spread = mean.sum(0), spread.mean(0)
    columns = (
        share.clamp_min(TINY).log10() / 8,
        slope.double().clamp(1e-8, 1e8).log10() / 4,
        spread.clamp(1.0, 1e6).log10() / 3,
        mean.clamp_min(1e-8).log10() / 8,
    )
    members = torch.nn.functional.one_hot(band, BANDS).double()
    count = members.sum(0)
    values = [(members.T @ column) / count.clamp_min(1) for column in columns]
    size = count / m
    values += [size, (count > 0).double()]
    return torch.stack(values, dim=1).float().cpu()


def channel_features(layer: LayerSpec, sketch: Sketch, guess: Float[Tensor, " m"]) -> Float[Tensor, "m f_channel"]:
    """Per channel of the layer's smaller side: guessed curvature, norm of its weights, what its norm layer says."""
    weight = sketch.weight.double()
    outside = layer.side is Side.OUTPUT
    norms = (weight.norm(dim=-1) if outside else weight.norm(dim=-2)).flatten()
    norm = sketch.follower if outside else sketch.feeder
    taps = 1 if outside else layer.taps
    zeros = torch.zeros_like(norms)
    scale = shift = known = zeros
    if norm is not None and norm.weight.numel() * taps == len(norms):
        scale = norm.weight.double().abs().clamp_min(1e-6).log().repeat_interleave(taps)
        shift = norm.bias.double().repeat_interleave(taps)
        known = torch.ones_like(norms)
    centred = guess.double().clamp_min(TINY).log()
    rows = (
        (centred - centred.mean()) / 4,
        (norms.clamp_min(1e-9).log() - norms.clamp_min(1e-9).log().mean()) / 2,
        scale / 2,
        shift.clamp(-4, 4) / 2,
        known,
    )
    return torch.stack(rows, dim=1).float()
