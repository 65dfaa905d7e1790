"""A layer's menu: what may stand in its place, what each form costs and loses, and the corners worth having.

Factored on one side at rank r, on both sides at ranks (q, r) (Tucker-2) where it `LayerSpec.projects`, or dense. The
loss of a form is the energy of what it discards on either side.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from hypercompress.specs import COUNTED, LayerSpec, ModelSpec, Unit

Energies = Mapping[str, Float[Tensor, " m"]]
InputEnergies = Mapping[str, Float[Tensor, " c"]]
NONE: InputEnergies = {}
FINE = 48  # ranks up to here are tried one by one on the two-sided menu, above it in steps of a twentieth


@dataclass(frozen=True)
class Form:
    """What stands in a layer's place; no rank: the dense layer."""

    rank: int | None = None
    input_rank: int | None = None


LEAST = Form(1)
Point = tuple[Form, int, float]  # a form, its cost and what it loses


def lower_hull(points: Sequence[Point]) -> list[Point]:
    """The corners of the lower convex hull of points whose costs rise and whose losses fall."""
    corners: list[Point] = []
    for point in points:
        while len(corners) > 1:
            (_, c0, l0), (_, c1, l1), (_, c2, l2) = corners[-2], corners[-1], point
            if (l1 - l2) * (c1 - c0) <= (l0 - l1) * (c2 - c1):
                break
            corners.pop()
        corners.append(point)
    return corners


def tail(energy: Float[Tensor, " m"]) -> NDArray[np.float64]:
    """What is lost at each rank. Energies only order the steps: if they ever rise, their running minimum counts."""
    values = np.minimum.accumulate(energy.detach().double().cpu().numpy())
    return np.concatenate([np.cumsum(values[::-1])[::-1], [0.0]])


@lru_cache(maxsize=256)
def forms_of(layer: LayerSpec, unit: Unit) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
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
class Menu:
    """Of one layer during allocation: its form now, and what is lost at each rank on either side."""

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
        rank, inner, cost = forms_of(self.spec, self.unit)
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
            forms = zip(*(a.tolist() for a in forms_of(self.spec, self.unit)[:2]), strict=True)
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
    return {menu.spec.name: menu.hull() for menu in menus_of(spec, energies, inputs, unit)}


def menus_of(spec: ModelSpec, energies: Energies, inputs: InputEnergies, unit: Unit) -> list[Menu]:
    """The menu of each candidate; energies as `allocation.allocate` takes them."""
    menus = []
    for layer in spec.candidates:
        inner = inputs.get(layer.name) if layer.projects else None
        menus.append(Menu(layer, unit, tail(energies[layer.name]), None if inner is None else tail(inner)))
    return menus
