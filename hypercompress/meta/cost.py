"""What a student costs as a share of its teacher, differentiable in the ranks: the compression terms of the loss.

A budget fixes the cost in its own unit, and the straight-through masks keep it there (`generator/emission.py`). What is
left to choose is what the same budget costs in the other units: how many multiply-accumulates a share of the parameters
takes, and how much time.
"""

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
        rank, inner = plan.ranks[layer.name], plan.input_ranks.get(layer.name)
        less = dense - _cost(layer, emission.layers[layer.name], counted, rank, inner)
        saved = saved.to(less.device) + less * (layer.dense_cost(unit) / max(1, dense))
    return 1 - saved / spec.total(unit)


def _cost(layer: LayerSpec, emitted: EmittedLayer, unit: Unit, rank: int, input_rank: int | None) -> Float[Tensor, ""]:
    """`LayerSpec.cost`; beside each mask the cost of one more rank on its side, times a difference of value 0."""
    cost = torch.tensor(float(layer.cost(unit, rank, input_rank)), dtype=torch.float64)
    if emitted.mask is not None:
        cost = cost + layer.step(unit, input_rank) * (emitted.mask.double().sum() - rank)
    if input_rank is not None and emitted.inner is not None and emitted.inner.mask is not None:
        cost = cost + layer.input_step(unit, rank) * (emitted.inner.mask.double().sum() - input_rank)
    return cost
