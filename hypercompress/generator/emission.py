"""From the hypernetwork's outputs to factors: the analytic generator, bent.

Everything here is differentiable in the outputs. Ranks are integers; their gradient is a straight-through sigmoid on
how far each direction lies above the water level, and the level moves such that the cost of the kept directions is
constant: the gradient trades layers against each other and never asks for a larger budget.

Letters: ``k`` directions carried along (the rank at inference; beyond it in training, so that discarded directions
have a gradient), otherwise as in `specs`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from hypercompress.allocation import allocate, predicted_kl
from hypercompress.factorize import Frame, balanced, weighted_frame
from hypercompress.generator.analytic import ANALYTIC, AnalyticGenerator
from hypercompress.generator.heads import Outputs
from hypercompress.generator.protocol import Frames, Sketches
from hypercompress.generator.restoration import absorbs, give_back
from hypercompress.specs import (
    Budget,
    Curvature,
    Factors,
    LayerFactors,
    LayerSpec,
    ModelSpec,
    RankPlan,
    Side,
    Sketch,
)
from hypercompress.tokens import bands

TEMPERATURE = 0.5  # of the straight-through sigmoid, in log energy per cost


@dataclass(frozen=True)
class Start:
    """The analytic start of one teacher, whatever the budget: ``kfac`` with measured curvature, ``prior`` without."""

    base: AnalyticGenerator
    curvatures: Mapping[str, Curvature]
    frames: Frames
    energies: Mapping[str, Float[Tensor, " m"]]

    @property
    def measured(self) -> bool:
        return not self.base.prior


def start_of(spec: ModelSpec, sketches: Sketches) -> Start:
    """The start that the sketches allow."""
    measured = all(sketches[layer.name].curvature is not None for layer in spec.candidates)
    base = ANALYTIC["kfac" if measured else "prior"]
    curvatures, frames = base.curvatures(spec, sketches), base.frames(spec, sketches)
    return Start(base, curvatures, frames, base.energies(frames))


def corrected(spec: ModelSpec, sketches: Sketches, start: Start, changes: Mapping[str, Float[Tensor, " m"]]) -> Start:
    """A data-free start whose bare metric (diagonal by construction) is multiplied by ``exp(changes)`` per channel."""
    curvatures, frames = {}, {}
    assert start.base.metric is not None
    for layer in spec.candidates:
        guess, factor = (
            start.curvatures[layer.name],
            changes[layer.name].to(start.curvatures[layer.name].signal.device).double().exp(),
        )
        if guess.side is Side.OUTPUT:
            fisher, signal = torch.diag(guess.fisher.diagonal() * factor), guess.signal
        else:  # written as a change, so that a factor of 1 leaves every bit as it is
            variance = guess.signal.diagonal() - guess.mean**2
            signal, fisher = guess.signal + torch.diag(variance * (factor - 1)), guess.fisher
        curvature = Curvature(guess.side, signal, fisher, guess.gram, guess.mean)
        curvatures[layer.name] = curvature
        frames[layer.name] = weighted_frame(curvature, start.base.metric_for(layer, sketches[layer.name]))
    return Start(start.base, curvatures, frames, start.base.energies(frames))


@dataclass(frozen=True)
class EmittedLayer:
    """``expand diag(mask) reduce`` is the student's matrix; ``mask`` is None where every direction is kept."""

    expand: Float[Tensor, "out k"]
    reduce: Float[Tensor, "k d"]
    mask: Float[Tensor, " k"] | None
    bias: Float[Tensor, " out"] | None


@dataclass(frozen=True)
class Emission:
    """A student as tensors: factored layers, additive changes of norm parameters, and the plan behind them."""

    layers: Mapping[str, EmittedLayer]
    deltas: Mapping[str, Float[Tensor, " c"]]
    plan: RankPlan

    def factors(self) -> Factors:
        """For `student.build_student`; only of an emission without masks."""
        layers = {}
        for name, layer in self.layers.items():
            pair = balanced(layer.expand.detach(), layer.reduce.detach())
            layers[name] = LayerFactors(pair.expand, pair.reduce, None if layer.bias is None else layer.bias.detach())
        return Factors(layers, {name: delta.detach() for name, delta in self.deltas.items()})


def scores(spec: ModelSpec, start: Start, outputs: Outputs) -> dict[str, Float[Tensor, " m"]]:
    """Energies as the allocation shall see them; differentiable."""
    found = {}
    for index, layer in enumerate(spec.candidates):
        energy = start.energies[layer.name]
        relative = (energy / energy.max().clamp_min(1e-300)).clamp_min(1e-12).log()
        bend = outputs.weight[index].double() + outputs.exponent[index].double() * relative
        found[layer.name] = energy * bend.exp()
    return found


def emit(
    spec: ModelSpec, sketches: Sketches, start: Start, outputs: Outputs, budget: Budget, *, training: bool = False
) -> Emission:
    """The student that the outputs describe, at exactly the budget.

    Args:
        training: carry discarded directions and masks along, for gradients.

    Raises:
        BudgetError: the budget is out of reach.
    """
    scored = scores(spec, start, outputs)
    plan = allocate(spec, {name: score.detach() for name, score in scored.items()}, budget, nats=False)
    predicted = predicted_kl(spec, start.energies, plan.ranks) if start.base.nats else None
    plan = RankPlan(plan.ranks, plan.unit, plan.cost, plan.achieved, predicted)
    masks = straight_through(spec, scored, plan) if training else {}
    layers: dict[str, EmittedLayer] = {}
    deltas: dict[str, Tensor] = {}
    for index, layer in enumerate(spec.candidates):
        if layer.name in plan.ranks:
            layers[layer.name], changed = _layer(layer, sketches[layer.name], start, outputs, index, plan, masks)
            deltas.update(changed)
    return Emission(layers, deltas, plan)


def straight_through(spec: ModelSpec, scored: Mapping[str, Tensor], plan: RankPlan) -> dict[str, Float[Tensor, " k"]]:
    """A 0/1 mask over the carried directions of each factored layer, with the gradient of the module docstring."""
    layers = [layer for layer in spec.candidates if layer.name in plan.ranks]
    if not layers:
        return {}
    heights, hards, costs = [], [], []
    for layer in layers:
        rank, step = plan.ranks[layer.name], layer.rank_cost(plan.unit)
        height = (scored[layer.name][: carried(layer, rank)].clamp_min(1e-300) / step).log()
        heights.append(height)
        hards.append((torch.arange(len(height), device=height.device) < rank).to(height.dtype))
        costs.append(torch.full_like(height, step))
    height, hard, cost = torch.cat(heights), torch.cat(hards), torch.cat(costs)
    kept, lost = height[hard > 0].detach(), height[hard == 0].detach()
    level = (kept.quantile(0.1) + lost.quantile(0.9)) / 2 if len(lost) else kept.min()
    sigmoid = torch.sigmoid((height.detach() - level) / TEMPERATURE)
    weight = cost * sigmoid * (1 - sigmoid)
    rise = (weight * height).sum() / weight.sum().clamp_min(1e-300)
    soft = torch.sigmoid((height - level - (rise - rise.detach())) / TEMPERATURE)
    mask = hard + soft - soft.detach()
    return dict(zip((layer.name for layer in layers), mask.split([len(h) for h in heights]), strict=True))


def carried(layer: LayerSpec, rank: int) -> int:
    """Directions carried along in training."""
    return min(layer.full_rank, 2 * rank + 8)


def _layer(
    layer: LayerSpec,
    sketch: Sketch,
    start: Start,
    outputs: Outputs,
    index: int,
    plan: RankPlan,
    masks: Mapping[str, Tensor],
) -> tuple[EmittedLayer, dict[str, Tensor]]:
    frame, rank, mask = start.frames[layer.name], plan.ranks[layer.name], masks.get(layer.name)
    weight = sketch.weight
    dtype = frame.left.dtype
    left, right = rotated(frame, start.curvatures[layer.name].gram, rank, outputs.rotation[index].to(dtype), mask)
    gain = outputs.gain[index].to(left)[bands(layer.full_rank, rank)[: left.shape[1]].to(left.device)]
    left = left * (1 + gain)
    bias: Tensor | None = None
    deltas: dict[str, Tensor] = {}
    if absorbs(layer, sketch):
        bias, deltas = give_back(
            layer,
            sketch,
            start.curvatures[layer.name],
            left[:, :rank],
            right[:rank],
            spread=start.base.spread + outputs.spread[index].to(dtype),
            shift=outputs.shift[index].to(dtype),
        )
    left, right = left.to(weight.dtype), right.to(weight.dtype)
    expand, reduce = (left, right @ weight) if frame.side is Side.OUTPUT else (weight @ left, right)
    return EmittedLayer(expand, reduce, None if mask is None else mask.to(weight.dtype), bias), deltas


def rotated(
    frame: Frame, gram: Tensor, rank: int, amount: Tensor, mask: Tensor | None
) -> tuple[Float[Tensor, "m k"], Float[Tensor, "k m"]]:
    """Directions after a share ``amount`` of the plain-weight metric is mixed into the curvature, to first order.

    Perturbation theory turns kept direction i towards discarded j by ``Gamma_ji / (s_i^2 - s_j^2)``, with ``Gamma`` the
    Gram matrix of the weights in the frame, at the curvature's trace. The sign of ``Gamma_ji`` is what makes this
    independent of the arbitrary signs of the directions.
    """
    k = rank if mask is None else len(mask)
    left, right = frame.left[:, :k], frame.right[:k]
    energy = (frame.energy / frame.energy[0].clamp_min(1e-300)).to(left.dtype)
    gap = energy[:rank, None] - energy[None, rank:]
    if not gap.numel():
        return left, right
    side = frame.right if frame.side is Side.OUTPUT else frame.left.T
    gram = gram.to(side.dtype)
    trace = (side @ gram * side).sum().clamp_min(1e-30)
    gamma = side[:rank] @ gram @ side[rank:].T * (energy.sum() / trace)
    floor = 0.05 * energy[:rank, None] + 1e-6
    turn = amount * (gamma * gap / (gap**2 + floor**2)).clamp(-1, 1)  # [rank, m - rank]
    kept_left = left[:, :rank] + frame.left[:, rank:] @ turn.T
    kept_right = right[:rank] + turn @ frame.right[rank:]
    return torch.cat([kept_left, left[:, rank:]], 1), torch.cat([kept_right, right[rank:]], 0)
