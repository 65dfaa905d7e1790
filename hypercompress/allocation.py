"""Ranks for a budget: water-filling over all directions of all layers.

Because the energy of a direction is in nats whatever its layer (`factorize/linalg.py`), one greedy pass by energy per
cost over the lower convex hull of each layer's (cost, loss) curve is optimal for the additive model up to the last
step. The dense layer is the hull's last point, so a layer stays dense where its last ranks cost more than they save.
What the pass leaves over is then filled with single ranks, so the budget is met from below to within one rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from hypercompress.errors import BudgetError
from hypercompress.specs import Budget, LayerSpec, ModelSpec, RankPlan, Unit

Energies = Mapping[str, Float[Tensor, " m"]]


@dataclass(frozen=True)
class ParetoPoint:
    """One corner of the trade-off: size as a share of the teacher, and predicted nats of KL."""

    share: float
    predicted_kl: float


@dataclass(frozen=True)
class _Segment:
    """A step along a layer's hull, to ``rank`` (``None``: to the dense layer)."""

    slope: float
    layer: int
    rank: int | None
    cost: int
    gain: float


@dataclass
class _Curve:
    """One layer during allocation: the current rank (``None``: dense) and what is still lost at each rank."""

    spec: LayerSpec
    unit: Unit
    energy: NDArray[np.float64]
    tail: NDArray[np.float64]  # tail[r] = energy lost at rank r
    rank: int | None = 1

    @property
    def step(self) -> int:
        return self.spec.rank_cost(self.unit)

    @property
    def cost(self) -> int:
        return self.spec.dense_cost(self.unit) if self.rank is None else self.rank * self.step

    @property
    def loss(self) -> float:
        return 0.0 if self.rank is None else float(self.tail[self.rank])

    def segments(self, index: int) -> list[_Segment]:
        """The hull from rank 1 to dense, slopes not increasing."""
        top = self.spec.max_rank
        steps = [(float(self.energy[r - 1]), self.step, r) for r in range(2, top + 1)]
        gain, cost = float(self.tail[top]), self.spec.dense_cost(self.unit) - top * self.step
        while steps and gain * steps[-1][1] > steps[-1][0] * cost:
            last = steps.pop()
            gain, cost = gain + last[0], cost + last[1]
        hull = [_Segment(g / c, index, r, c, g) for g, c, r in steps]
        # Rounding must not lift the last slope above the one before: the order of a layer's own steps matters.
        slope = min(gain / cost, hull[-1].slope) if hull else gain / cost
        return [*hull, _Segment(slope, index, None, cost, gain)]

    def moves(self, room: int) -> list[tuple[float, int | None]]:
        """Single steps that fit into ``room``, as (gain per cost, new rank)."""
        if self.rank is None:
            return []
        found: list[tuple[float, int | None]] = []
        if self.rank < self.spec.max_rank and self.step <= room:
            found.append((float(self.energy[self.rank]) / self.step, self.rank + 1))
        rest = self.spec.dense_cost(self.unit) - self.cost
        if rest <= room:
            found.append((self.loss / rest, None))
        return found


def _curves(spec: ModelSpec, energies: Energies, unit: Unit) -> list[_Curve]:
    curves = []
    for layer in spec.candidates:
        energy = energies[layer.name].detach().double().cpu().numpy()
        # Energies only order the steps, so a curve that is not convex is replaced by its running minimum.
        energy = np.minimum.accumulate(energy)
        curves.append(_Curve(layer, unit, energy, np.concatenate([np.cumsum(energy[::-1])[::-1], [0.0]])))
    return curves


def _fixed_cost(spec: ModelSpec, unit: Unit) -> int:
    """What no rank can change."""
    return spec.total(unit) - sum(layer.dense_cost(unit) for layer in spec.candidates)


def _ordered(curves: list[_Curve]) -> list[_Segment]:
    found = [segment for index, curve in enumerate(curves) for segment in curve.segments(index)]
    return sorted(found, key=lambda segment: -segment.slope)  # stable: a layer's own order survives ties


def allocate(spec: ModelSpec, energies: Energies, budget: Budget, *, nats: bool) -> RankPlan:
    """Ranks that meet ``budget`` from below.

    Args:
        spec: the teacher.
        energies: for each candidate its directions' energies, not increasing; any positive scale common to all layers.
        budget: share of the whole teacher.
        nats: whether half an energy is nats of KL, so that the plan can carry a predicted KL.

    Raises:
        BudgetError: the share is below what rank 1 everywhere needs; the message gives the reachable range.
    """
    unit, total = budget.unit, spec.total(budget.unit)
    curves = _curves(spec, energies, unit)
    floor = _fixed_cost(spec, unit) + sum(curve.cost for curve in curves)
    room = int(round(budget.share * total, 3)) - floor  # a share that is a cost divided by the total means that cost
    if room < 0:
        raise BudgetError(
            f"received a {unit} budget of {budget.share:g}; expected between {_ceil(floor / total)} and 1 for this "
            f"model ({len(curves)} layers can be factored, rank 1 in each is the least); choose a share in that range"
        )
    blocked: set[int] = set()
    for segment in _ordered(curves):
        if segment.layer in blocked:
            continue
        if segment.cost > room:
            blocked.add(segment.layer)
            continue
        room -= segment.cost
        curves[segment.layer].rank = segment.rank
    _fill(curves, room)
    cost = _fixed_cost(spec, unit) + sum(curve.cost for curve in curves)
    ranks = {curve.spec.name: curve.rank for curve in curves if curve.rank is not None}
    predicted = sum(curve.loss for curve in curves) / 2 if nats else None
    return RankPlan(ranks, unit, cost, cost / total, predicted)


def _fill(curves: list[_Curve], room: int) -> None:
    """Spend what is left on single steps, best gain per cost first, until none fits."""
    while True:
        moves = [(gain, index, rank) for index, curve in enumerate(curves) for gain, rank in curve.moves(room)]
        if not moves:
            return
        _, index, rank = max(moves, key=lambda move: move[0])
        room += curves[index].cost
        curves[index].rank = rank
        room -= curves[index].cost


def predicted_kl(spec: ModelSpec, energies: Energies, ranks: Mapping[str, int]) -> float:
    """Nats of KL that the additive model predicts for given ranks; ``energies`` in nats (twice)."""
    lost = [float(energies[layer.name][ranks[layer.name] :].sum()) for layer in spec.candidates if layer.name in ranks]
    return sum(lost, 0.0) / 2


def pareto(spec: ModelSpec, energies: Energies, unit: Unit) -> list[ParetoPoint]:
    """Predicted KL against size for the whole reachable range at once, without building a student.

    ``energies`` must be in nats (twice). Points come with the share rising, the first is rank 1 everywhere, the last
    the teacher itself.
    """
    curves, total = _curves(spec, energies, unit), spec.total(unit)
    cost = _fixed_cost(spec, unit) + sum(curve.cost for curve in curves)
    loss = sum(curve.loss for curve in curves) / 2
    points = [ParetoPoint(cost / total, loss)]
    for segment in _ordered(curves):
        cost, loss = cost + segment.cost, loss - segment.gain / 2
        points.append(ParetoPoint(cost / total, max(loss, 0.0)))
    return points


def _ceil(share: float) -> str:
    """A share rounded up to four digits, so that asking for exactly that succeeds."""
    return f"{np.ceil(share * 10_000) / 10_000:.4f}"
