"""What a student costs as a share of its teacher, differentiable in the ranks: the compression terms of the loss.

A budget fixes the cost in its own unit, and the straight-through masks keep it there (`generator/emission.py`). What is
left to choose is what the same budget costs in the other units: how many multiply-accumulates a share of the parameters
takes, and how much time.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from hypercompress.errors import BudgetError
from hypercompress.generator.emission import Emission, EmittedLayer
from hypercompress.specs import COUNTED, LayerSpec, ModelSpec, Unit


def cost_share(spec: ModelSpec, emission: Emission, unit: Unit) -> Float[Tensor, ""]:
    """Cost of the whole student over that of the teacher. Its value is exact in the counted units; its gradient goes
    through the masks, where the emission carries any.

    Time is the measured time of the dense layer, in proportion to the multiply-accumulates that are left of it.

    Args:
        spec: with times (`latency.measure_latency`) for `Unit.LATENCY`.

    Raises:
        BudgetError: time is asked for and was not measured.
    """
    if unit is Unit.LATENCY and not spec.latency:
        raise BudgetError("received a spec without times; expected measured ones; call measure_latency first")
    counted = unit if unit in COUNTED else Unit.MACS
    plan, saved = emission.plan, torch.zeros((), dtype=torch.float64)
    for layer in spec.candidates:
        if layer.name not in emission.layers:
            continue
        dense = layer.dense_cost(counted)
        less = dense - _cost(layer, emission.layers[layer.name], counted, plan.ranks, plan.input_ranks)
        saved = saved.to(less.device) + less * (layer.dense_cost(unit) / max(1, dense))
    return 1 - saved / spec.total(unit)


def _cost(
    layer: LayerSpec, emitted: EmittedLayer, unit: Unit, ranks: Mapping[str, int], inner: Mapping[str, int]
) -> Float[Tensor, ""]:
    """`LayerSpec.cost` with masks in the place of ranks; it is linear in the rank, and bilinear with an input rank."""
    rank = _rank(emitted.mask, ranks[layer.name])
    if layer.name not in inner:
        return rank * layer.rank_cost(unit)
    assert emitted.inner is not None  # it has an input rank
    q = _rank(emitted.inner.mask, inner[layer.name])
    before, after = layer.cost(unit, 0, 1), layer.cost(unit, 1, 0)
    return q * before + rank * after + q * rank * (layer.cost(unit, 1, 1) - before - after)


def _rank(mask: Float[Tensor, " k"] | None, rank: int) -> Float[Tensor, ""]:
    """The rank, with the gradient of its mask if there is one."""
    return torch.tensor(float(rank), dtype=torch.float64) if mask is None else mask.double().sum()
