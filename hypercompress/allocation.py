"""Forms and ranks for a budget: water-filling over the menus of all layers.

A layer's menu is what may stand in its place: factored on one side at rank r, on both sides at ranks (q, r) (Tucker-2)
where it `LayerSpec.projects`, or dense. Because the energy of a direction is in nats whatever its layer
(`factorize/linalg.py`), the loss of a form is half the energy of what it discards on either side, and losses add up.
One greedy pass by gain per cost over the lower convex hull of each menu's (cost, loss) points is optimal for this
additive model up to the last step. The dense layer is the hull's last point, so a layer stays dense where its last
ranks cost more than they save. What the pass leaves over is then filled with single ranks, so the budget is met from
below to within one rank.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from hypercompress.errors import BudgetError
from hypercompress.hull import Form, Point, lower_hull, tail
from hypercompress.specs import COUNTED, Budget, LayerSpec, ModelSpec, RankPlan, Unit

Energies = Mapping[str, Float[Tensor, " m"]]
InputEnergies = Mapping[str, Float[Tensor, " c"]]
NONE: InputEnergies = {}
LEAST = Form(1)
NAMED = 3  # layers in the message that nothing can be factored
FINE = 48  # ranks up to here are tried one by one on the two-sided menu, above it in steps of a twentieth


@dataclass(frozen=True)
class ParetoPoint:
    """One corner of the trade-off: size as a share of the teacher, and predicted nats of KL."""

    share: float
    predicted_kl: float


@dataclass(frozen=True)
class _Segment:
    """A step along a layer's hull, to ``form``."""

    slope: float
    layer: int
    form: Form
    cost: int
    gain: float


@lru_cache(maxsize=256)
def _forms(layer: LayerSpec, unit: Unit) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Ranks, input ranks (0: none) and costs of the factored forms that are smaller than dense in both counted units;
    if the layer was timed, of those that were faster than dense.
    """
    if layer.measured is not None or unit is Unit.LATENCY:
        forms = layer.measured.forms if layer.measured else ()
        table = np.array([(r, q, layer.cost(unit, r, q or None)) for r, q, _ in forms], dtype=np.int64).reshape(-1, 3)
        return table[:, 0], table[:, 1], table[:, 2]
    ranks = np.arange(1, layer.max_rank + 1, dtype=np.int64)
    columns = [(ranks, np.zeros_like(ranks), ranks * layer.rank_cost(unit))]
    if layer.projects:
        q, r = (a.ravel() for a in np.meshgrid(_grid(layer.channels), _grid(layer.full_rank), indexing="ij"))
        costs = {u: _cost(layer, u, r, q) for u in COUNTED}
        small = np.logical_and(*(costs[u] < layer.dense_cost(u) for u in COUNTED))
        columns.append((r[small], q[small], costs[unit][small]))
    rank, inner, cost = (np.concatenate(column) for column in zip(*columns, strict=True))
    return rank, inner, cost


def _cost(layer: LayerSpec, unit: Unit, r: NDArray[np.int64], q: NDArray[np.int64]) -> NDArray[np.int64]:
    """`LayerSpec.cost` for many forms; linear in q, r and q r."""
    inner, outer = layer.cost(unit, 0, 1), layer.step(unit, 0)
    cost: NDArray[np.int64] = q * inner + r * outer + q * r * (layer.cost(unit, 1, 1) - inner - outer)
    return cost


def _grid(most: int) -> NDArray[np.int64]:
    found = list(range(1, min(most, FINE) + 1))
    while found[-1] < most:
        found.append(min(most, found[-1] + found[-1] // 20))
    return np.array(found, dtype=np.int64)


@dataclass
class _Curve:
    """One layer during allocation: its form now, and what is lost at each rank on either side."""

    spec: LayerSpec
    unit: Unit
    tail: NDArray[np.float64]  # tail[r] = energy lost at rank r
    inner: NDArray[np.float64] | None
    form: Form = LEAST

    def cost(self, form: Form | None = None) -> int:
        form = form or self.form
        if form.rank is None:
            return self.spec.dense_cost(self.unit)
        return self.spec.cost(self.unit, form.rank, form.input_rank)

    def loss(self, form: Form | None = None) -> float:
        form = form or self.form
        if form.rank is None:
            return 0.0
        if form.input_rank is None:
            return float(self.tail[form.rank])
        assert self.inner is not None  # its form has an input rank
        return float(self.tail[form.rank] + self.inner[form.input_rank])

    def hull(self) -> list[Point]:
        """Form, cost and loss at the corners from the cheapest to the dense layer, slopes not increasing."""
        rank, inner, cost = _forms(self.spec, self.unit)
        loss = self.tail[rank]
        if self.inner is None:
            here = inner == 0
            rank, inner, cost, loss = rank[here], inner[here], cost[here], loss[here]
        else:
            loss = loss + np.where(inner > 0, self.inner[inner], 0.0)
        order = np.lexsort((loss, cost))
        best = np.minimum.accumulate(loss[order])
        front = order[np.diff(best, prepend=np.inf) < 0].tolist()
        forms = [(Form(int(rank[at]), int(inner[at]) or None), int(cost[at]), float(loss[at])) for at in front]
        return lower_hull([*forms, (Form(), self.cost(Form()), 0.0)])

    def moves(self, room: int) -> Iterator[tuple[float, Form]]:
        """Single steps that fit into ``room``, as (gain per cost, form)."""
        rank, q = self.form.rank, self.form.input_rank
        if rank is None:
            return
        steps = [Form()]
        if self.spec.measured is not None:  # no ranks but the measured ones
            forms = zip(*(a.tolist() for a in _forms(self.spec, self.unit)[:2]), strict=True)
            steps += [Form(r, inner or None) for r, inner in forms if self.inner is not None or not inner]
        elif q is None:
            steps += [Form(rank + 1)] if rank < self.spec.max_rank else []
        else:
            steps += [Form(rank + 1, q)] if rank < self.spec.full_rank else []
            steps += [Form(rank, q + 1)] if q < self.spec.channels else []
        now, lost = self.cost(), self.loss()
        for form in steps:
            if form.rank is not None and not self._smaller(form):
                continue
            cost = self.cost(form) - now
            if 0 < cost <= room and self.loss(form) <= lost:
                yield (lost - self.loss(form)) / cost, form

    def _smaller(self, form: Form) -> bool:
        assert form.rank is not None
        rank, inner = form.rank, form.input_rank
        return all(self.spec.cost(unit, rank, inner) < self.spec.dense_cost(unit) for unit in COUNTED)


def hulls(spec: ModelSpec, energies: Energies, unit: Unit, inputs: InputEnergies = NONE) -> dict[str, list[Point]]:
    """Each candidate's menu, as the allocation sees it: form, cost and energy lost at the corners of its hull."""
    return {curve.spec.name: curve.hull() for curve in _curves(spec, energies, inputs, unit)}


def _curves(spec: ModelSpec, energies: Energies, inputs: InputEnergies, unit: Unit) -> list[_Curve]:
    curves = []
    for layer in spec.candidates:
        inner = inputs.get(layer.name) if layer.projects else None
        curves.append(_Curve(layer, unit, tail(energies[layer.name]), None if inner is None else tail(inner)))
    return curves


def _segments(curves: list[_Curve]) -> list[_Segment]:
    """Every step of every hull, best first. Each curve is set to its cheapest form."""
    found = []
    for index, curve in enumerate(curves):
        corners = curve.hull()
        curve.form = corners[0][0]
        slope = np.inf
        for (_, c0, l0), (form, c1, l1) in pairwise(corners):
            # Rounding must not lift a slope above the one before: the order of a layer's own steps matters.
            slope = min(slope, (l0 - l1) / (c1 - c0))
            found.append(_Segment(slope, index, form, c1 - c0, l0 - l1))
    return sorted(found, key=lambda segment: -segment.slope)  # stable: a layer's own order survives ties


def _fixed_cost(spec: ModelSpec, unit: Unit) -> int:
    """What no rank can change."""
    return spec.total(unit) - sum(layer.dense_cost(unit) for layer in spec.candidates)


def allocate(
    spec: ModelSpec, energies: Energies, budget: Budget, *, nats: bool, inputs: InputEnergies = NONE
) -> RankPlan:
    """Forms and ranks that meet ``budget`` from below.

    Args:
        spec: the teacher.
        energies: for each candidate its directions' energies, not increasing; any positive scale common to all layers.
        budget: share of the whole teacher.
        nats: whether half an energy is nats of KL, so that the plan can carry a predicted KL.
        inputs: the same for the input channels of layers that may be factored on both sides; others are absent.

    Raises:
        BudgetError: the share is below what the least ranks need; the message gives the reachable range, or the reasons
            why nothing can be factored.
    """
    unit, total = budget.unit, spec.counted(budget.unit)
    curves = _curves(spec, energies, inputs, unit)
    segments = _segments(curves)
    floor = _fixed_cost(spec, unit) + sum(curve.cost() for curve in curves)
    room = int(round(budget.share * total, 3)) - floor  # a share that is a cost divided by the total means that cost
    if room < 0:
        _require_factored(spec, budget, curves)
        timed = any(curve.spec.measured is not None for curve in curves)
        what = "the fastest form" if unit is Unit.LATENCY else "the smallest form"
        least = f"{what} that was measured in each is the least" if timed else "rank 1 in each is the least"
        raise BudgetError(
            f"received a {unit} budget of {budget.share:g}; expected between {_ceil(floor / total)} and 1 for this "
            f"model ({len(curves)} layers can be factored, {least}{_largest_dense(spec)}); choose a share in that range"
        )
    blocked: set[int] = set()
    for segment in segments:
        if segment.layer in blocked:
            continue
        if segment.cost > room:
            blocked.add(segment.layer)
            continue
        room -= segment.cost
        curves[segment.layer].form = segment.form
    _fill(curves, room)
    cost = _fixed_cost(spec, unit) + sum(curve.cost() for curve in curves)
    ranks = {curve.spec.name: curve.form.rank for curve in curves if curve.form.rank is not None}
    inner = {curve.spec.name: curve.form.input_rank for curve in curves if curve.form.input_rank is not None}
    predicted = sum(curve.loss() for curve in curves) / 2 if nats else None
    return RankPlan(ranks, unit, cost, cost / total, predicted, inner)


def _largest_dense(spec: ModelSpec) -> str:
    """The largest layer that no budget reaches, and why not; empty if it is smaller than a tenth of the model."""
    layer = max((layer for layer in spec.layers if layer.reason), key=lambda layer: layer.params, default=None)
    if layer is None or layer.params < spec.params / 10:
        return ""
    return f"; {layer.name or 'what it holds itself'} stays dense: {layer.reason}"


def _require_factored(spec: ModelSpec, budget: Budget, curves: list[_Curve]) -> None:
    """Raises BudgetError if every layer stays dense whatever the budget, with the reasons of the largest ones."""
    if any(curve.form.rank is not None for curve in curves):
        return
    layers = sorted(spec.layers, key=lambda layer: -layer.params)
    reasons = [f"{layer.name or 'itself'}: {layer.reason or 'no form of it was faster'}" for layer in layers]
    raise BudgetError(
        f"received a {budget.unit} budget of {budget.share:g} for a model in which nothing can be factored "
        f"({'; '.join(reasons[:NAMED]) or 'no layers'}{'; and more' if len(reasons) > NAMED else ''}); expected a "
        "layer that can be, or a budget of 1; leave the model as it is"
    )


def _fill(curves: list[_Curve], room: int) -> None:
    """Spend what is left on single steps, best gain per cost first, until none fits."""
    while True:
        moves = [(gain, index, form) for index, curve in enumerate(curves) for gain, form in curve.moves(room)]
        if not moves:
            return
        _, index, form = max(moves, key=lambda move: move[0])
        room += curves[index].cost()
        curves[index].form = form
        room -= curves[index].cost()


def least_share(spec: ModelSpec, unit: Unit) -> float:
    """The smallest budget that can be had, whatever it does to the outputs."""
    costs = (min([*_forms(layer, unit)[2].tolist(), layer.dense_cost(unit)]) for layer in spec.candidates)
    return float((_fixed_cost(spec, unit) + sum(costs)) / max(1, spec.total(unit)))


def predicted_kl(spec: ModelSpec, energies: Energies, plan: RankPlan, inputs: InputEnergies = NONE) -> float:
    """Nats of KL that the additive model predicts for given ranks; energies in nats (twice)."""
    factored = [layer.name for layer in spec.candidates if layer.name in plan.ranks]
    lost = [float(energies[name][plan.ranks[name] :].sum()) for name in factored]
    lost += [float(inputs[name][rank:].sum()) for name, rank in plan.input_ranks.items()]
    return sum(lost, 0.0) / 2


def pareto(spec: ModelSpec, energies: Energies, unit: Unit, inputs: InputEnergies = NONE) -> list[ParetoPoint]:
    """Predicted KL against size for the whole reachable range at once, without building a student.

    ``energies`` must be in nats (twice). Points come with the share rising, the first is rank 1 everywhere, the last
    the teacher itself.
    """
    curves, total = _curves(spec, energies, inputs, unit), spec.counted(unit)
    segments = _segments(curves)
    cost = _fixed_cost(spec, unit) + sum(curve.cost() for curve in curves)
    loss = sum(curve.loss() for curve in curves) / 2
    points = [ParetoPoint(cost / total, loss)]
    for segment in segments:
        cost, loss = cost + segment.cost, loss - segment.gain / 2
        points.append(ParetoPoint(cost / total, max(loss, 0.0)))
    return points


def _ceil(share: float) -> str:
    """A share rounded up to four digits, so that asking for exactly that succeeds."""
    return f"{np.ceil(share * 10_000) / 10_000:.4f}"
