"""From the hypernetwork's outputs to factors: the analytic generator, bent.

Everything here is differentiable in the outputs. Ranks are integers; their gradient is a straight-through sigmoid on
how far each direction lies above the water level, and the level moves such that the cost of the kept directions is
constant: the gradient trades layers against each other and never asks for a larger budget.

Letters: ``k`` directions carried along (the rank at inference; beyond it in training, so that discarded directions
have a gradient), otherwise as in `specs`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from hypercompress.allocation import allocate, predicted_kl
from hypercompress.factorize import Frame, balance, projected
from hypercompress.generator.heads import Outputs
from hypercompress.generator.protocol import Sketches
from hypercompress.generator.restoration import absorbs, give_back
from hypercompress.generator.start import Start
from hypercompress.specs import (
    Budget,
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
class EmittedInput:
    """``left diag(mask) right`` is the projection of the input channels; ``mask`` is None where all are kept."""

    left: Float[Tensor, "c k"]
    right: Float[Tensor, "k c"]
    mask: Float[Tensor, " k"] | None

    def project(self, reduce: Float[Tensor, "r d"], taps: int) -> Float[Tensor, "r d"]:
        """A kernel after the projection of its input channels."""
        left = self.left if self.mask is None else self.left * self.mask
        return projected(reduce, left @ self.right, taps)


@dataclass(frozen=True)
class EmittedLayer:
    """``expand diag(mask) reduce`` is the student's matrix; ``mask`` is None where every direction is kept.

    With ``inner``, ``reduce`` is a kernel of ``taps`` positions whose input channels are projected first.
    """

    expand: Float[Tensor, "*g o k"]
    reduce: Float[Tensor, "*g k d"]
    mask: Float[Tensor, " k"] | None
    bias: Float[Tensor, " out"] | None
    inner: EmittedInput | None = None
    taps: int = 1

    def matrix(self) -> Float[Tensor, "*g o d"]:
        """What stands in for the layer's matrix, differentiable in everything that was generated."""
        expand = self.expand if self.mask is None else self.expand * self.mask
        return expand @ (self.reduce if self.inner is None else self.inner.project(self.reduce, self.taps))

    def factors(self, rank: int, input_rank: int | None) -> LayerFactors:
        """The kept directions as factors, balanced and detached."""
        reduce, project = self.reduce[..., :rank, :].detach(), None
        if self.inner is not None:
            reduce = projected(reduce, self.inner.left[:, :input_rank].detach(), self.taps)
            project = self.inner.right[:input_rank].detach()
        bias = None if self.bias is None else self.bias.detach()
        return balance(LayerFactors(self.expand[..., :rank].detach(), reduce, bias, project))


@dataclass(frozen=True)
class Emission:
    """A student as tensors: factored layers, additive changes of norm parameters, and the plan behind them."""

    layers: Mapping[str, EmittedLayer]
    deltas: Mapping[str, Float[Tensor, " c"]]
    plan: RankPlan

    def factors(self) -> Factors:
        """For `student.build_student`."""
        plan = self.plan
        layers = {n: layer.factors(plan.ranks[n], plan.input_ranks.get(n)) for n, layer in self.layers.items()}
        return Factors(layers, {name: delta.detach() for name, delta in self.deltas.items()})


@dataclass(frozen=True)
class Scores:
    """Energies as the allocation shall see them; differentiable."""

    outputs: Mapping[str, Float[Tensor, " m"]]
    inputs: Mapping[str, Float[Tensor, " c"]]


def scores(spec: ModelSpec, start: Start, outputs: Outputs) -> Scores:
    """The start's energies, bent by what the hypernetwork says."""
    found, inner = {}, {}
    for index, layer in enumerate(spec.candidates):
        energy, weight = start.energies[layer.name], outputs.weight[index].double()
        relative = (energy / energy.max().clamp_min(1e-300)).clamp_min(1e-12).log()
        found[layer.name] = energy * (weight + outputs.exponent[index].double() * relative).exp()
        if layer.name in start.inputs:
            inner[layer.name] = start.inputs[layer.name] * (weight + outputs.inner[index].double()).exp()
    return Scores(found, inner)


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
    given, inner = ({n: s.detach() for n, s in part.items()} for part in (scored.outputs, scored.inputs))
    plan = allocate(spec, given, budget, nats=False, inputs=inner)
    predicted = predicted_kl(spec, start.energies, plan, start.inputs) if start.base.nats else None
    plan = replace(plan, predicted_kl=predicted)
    masks = straight_through(spec, scored, plan) if training else Masks({}, {})
    # Training works in the dtype of the start; what is saved is worked out exactly, one layer at a time.
    exact = None if training else torch.float64
    layers: dict[str, EmittedLayer] = {}
    deltas: dict[str, Tensor] = {}
    for index, layer in enumerate(spec.candidates):
        if layer.name in plan.ranks:
            layers[layer.name], changed = _layer(layer, sketches[layer.name], start, outputs, index, plan, masks, exact)
            deltas.update(changed)
    return Emission(layers, deltas, plan)


@dataclass(frozen=True)
class Masks:
    """Over the carried directions of each factored layer, on either side."""

    outputs: Mapping[str, Float[Tensor, " k"]]
    inputs: Mapping[str, Float[Tensor, " c"]]


def straight_through(spec: ModelSpec, scored: Scores, plan: RankPlan) -> Masks:
    """0/1 masks with the gradient of the module docstring."""
    layers = [layer for layer in spec.candidates if layer.name in plan.ranks]
    if not layers:
        return Masks({}, {})
    heights, hards, costs = [], [], []

    def side(score: Tensor, rank: int, most: int, step: int) -> None:
        height = (score[: carried(most, rank)].clamp_min(1e-300) / step).log()
        heights.append(height)
        hards.append((torch.arange(len(height), device=height.device) < rank).to(height.dtype))
        costs.append(torch.full_like(height, step))

    inward = [layer for layer in layers if layer.name in plan.input_ranks]
    for layer in layers:
        step = layer.step(plan.unit, plan.input_ranks.get(layer.name))
        side(scored.outputs[layer.name], plan.ranks[layer.name], layer.full_rank, step)
    for layer in inward:
        step = layer.input_step(plan.unit, plan.ranks[layer.name])
        side(scored.inputs[layer.name], plan.input_ranks[layer.name], layer.channels, step)
    height, hard, cost = torch.cat(heights), torch.cat(hards), torch.cat(costs)
    kept, lost = height[hard > 0].detach(), height[hard == 0].detach()
    level = (kept.quantile(0.1) + lost.quantile(0.9)) / 2 if len(lost) else kept.min()
    sigmoid = torch.sigmoid((height.detach() - level) / TEMPERATURE)
    weight = cost * sigmoid * (1 - sigmoid)
    rise = (weight * height).sum() / weight.sum().clamp_min(1e-300)
    soft = torch.sigmoid((height - level - (rise - rise.detach())) / TEMPERATURE)
    masks = (hard + soft - soft.detach()).split([len(h) for h in heights])
    outputs = {layer.name: mask for layer, mask in zip(layers, masks, strict=False)}
    inputs = {layer.name: mask for layer, mask in zip(inward, masks[len(layers) :], strict=True)}
    return Masks(outputs, inputs)


def carried(most: int, rank: int) -> int:
    """Directions of ``most`` that are carried along in training."""
    return min(most, 2 * rank + 8)


def _layer(
    layer: LayerSpec,
    sketch: Sketch,
    start: Start,
    outputs: Outputs,
    index: int,
    plan: RankPlan,
    masks: Masks,
    exact: torch.dtype | None,
) -> tuple[EmittedLayer, dict[str, Tensor]]:
    frame, rank, mask = start.directions.outputs[layer.name], plan.ranks[layer.name], masks.outputs.get(layer.name)
    inner = _inner(layer, start, plan, masks, exact)
    frame = frame if exact is None else frame.stored(exact)
    weight = sketch.weight.to(torch.promote_types(sketch.weight.dtype, torch.float32))  # rounded once, in the end
    dtype = frame.left.dtype
    left, right = rotated(frame, start.curvatures[layer.name].gram, rank, outputs.rotation[index].to(dtype), mask)
    gain = outputs.gain[index].to(left)[bands(layer.full_rank, rank)[: left.shape[-1]].to(left.device)]
    left = left * (1 + gain)
    bias: Tensor | None = None
    deltas: dict[str, Tensor] = {}
    if absorbs(layer, sketch):
        bias, deltas = give_back(
            layer,
            sketch,
            start.curvatures[layer.name],
            left[..., :rank],
            right[..., :rank, :],
            spread=start.base.spread + outputs.spread[index].to(dtype),
            shift=outputs.shift[index].to(dtype),
            inner=None if inner is None else _kept(inner, plan.input_ranks[layer.name]),
        )
    left, right = left.to(weight.dtype), right.to(weight.dtype)
    expand, reduce = (left, right @ weight) if frame.side is Side.OUTPUT else (weight @ left, right)
    if inner is not None:
        inner = EmittedInput(
            inner.left.to(weight.dtype),
            inner.right.to(weight.dtype),
            None if inner.mask is None else inner.mask.to(weight.dtype),
        )
    mask = None if mask is None else mask.to(weight.dtype)
    return EmittedLayer(expand, reduce, mask, bias, inner, layer.taps), deltas


def _inner(
    layer: LayerSpec, start: Start, plan: RankPlan, masks: Masks, exact: torch.dtype | None
) -> EmittedInput | None:
    """The projection of the input channels, in the frame's dtype or ``exact``, if the plan has one."""
    rank = plan.input_ranks.get(layer.name)
    if rank is None:
        return None
    frame, mask = start.directions.inputs[layer.name], masks.inputs.get(layer.name)
    frame = frame if exact is None else frame.stored(exact)
    k = rank if mask is None else len(mask)
    return EmittedInput(frame.left[:, :k], frame.right[:k], mask)


def _kept(inner: EmittedInput, rank: int) -> tuple[Tensor, Tensor]:
    return inner.left[:, :rank], inner.right[:rank]


def rotated(
    frame: Frame, gram: Tensor, rank: int, amount: Tensor, mask: Tensor | None
) -> tuple[Float[Tensor, "*g m k"], Float[Tensor, "*g k m"]]:
    """Directions after a share ``amount`` of the plain-weight metric is mixed into the curvature, to first order.

    Perturbation theory turns kept direction i towards discarded j by ``Gamma_ji / (s_i^2 - s_j^2)``, with ``Gamma`` the
    Gram matrix of the weights in the frame, at the curvature's trace. The sign of ``Gamma_ji`` is what makes this
    independent of the arbitrary signs of the directions.
    """
    k = rank if mask is None else len(mask)
    left, right = frame.kept(k)
    energy = (frame.energy / frame.energy[..., :1].clamp_min(1e-300)).to(left.dtype)
    gap = energy[..., :rank, None] - energy[..., None, rank:]
    if not gap.numel():
        return left, right
    side = frame.right if frame.side is Side.OUTPUT else frame.left.mT
    gram = gram.to(side.dtype)
    trace = (side @ gram * side).sum((-2, -1)).clamp_min(1e-30)
    gamma = side[..., :rank, :] @ gram @ side[..., rank:, :].mT * (energy.sum(-1) / trace)[..., None, None]
    floor = 0.05 * energy[..., :rank, None] + 1e-6
    turn = amount * (gamma * gap / (gap**2 + floor**2)).clamp(-1, 1)  # [*g, rank, m - rank]
    kept_left = left[..., :rank] + frame.left[..., rank:] @ turn.mT
    kept_right = right[..., :rank, :] + turn @ frame.right[..., rank:, :]
    return torch.cat([kept_left, left[..., rank:]], -1), torch.cat([kept_right, right[..., rank:, :]], -2)
