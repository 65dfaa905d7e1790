"""Forms and ranks for a budget: water-filling over the menus of all layers.

Because the energy of a direction is in nats whatever its layer (`factorize/linalg.py`), the loss of a form (`menus.py`)
is half the energy of what it discards, and losses add up.
One greedy pass by gain per cost over the lower convex hull of each menu's (cost, loss) points is optimal for this
additive model up to the last step. The dense layer is the hull's last point, so a layer stays dense where its last
ranks cost more than they save. What the pass leaves over is then filled with single ranks, so the budget is met from
below to within one rank.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from hypercompress.errors import BudgetError, listed
from hypercompress.menus import NONE, Energies, Form, InputEnergies, Menu, forms_of, menus_of
from hypercompress.specs import UNCALLED, Budget, ModelSpec, RankPlan, Unit

NAMED = 3  # layers in the message that nothing can be factored


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


def _segments(menus: list[Menu]) -> list[_Segment]:
    """Every step of every hull, best first. Each menu is set to its cheapest form."""
    found = []
    for index, menu in enumerate(menus):
        corners = menu.hull()
        menu.form = corners[0][0]
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
    menus = menus_of(spec, energies, inputs, unit)
    segments = _segments(menus)
    floor = _fixed_cost(spec, unit) + sum(menu.cost() for menu in menus)
    room = int(round(budget.share * total, 3)) - floor  # a share that is a cost divided by the total means that cost
    if room < 0:
        _require_factored(spec, budget, menus)
        timed = any(menu.spec.measured is not None for menu in menus)
        what = "the fastest form" if unit is Unit.LATENCY else "the smallest form"
        least = f"{what} that was measured in each is the least" if timed else "rank 1 in each is the least"
        raise BudgetError(
            f"received a {unit} budget of {budget.share:g}; expected between {_ceil(floor / total)} and 1 for this "
            f"model ({len(menus)} layers can be factored, {least}{_largest_dense(spec)}); choose a share in that range"
        )
    blocked: set[int] = set()
    for segment in segments:
        if segment.layer in blocked:
            continue
        if segment.cost > room:
            blocked.add(segment.layer)
            continue
        room -= segment.cost
        menus[segment.layer].form = segment.form
    _fill(menus, room)
    cost = _fixed_cost(spec, unit) + sum(menu.cost() for menu in menus)
    ranks = {menu.spec.name: menu.form.rank for menu in menus if menu.form.rank is not None}
    inner = {menu.spec.name: menu.form.input_rank for menu in menus if menu.form.input_rank is not None}
    predicted = sum(menu.loss() for menu in menus) / 2 if nats else None
    return RankPlan(ranks, unit, cost, cost / total, predicted, inner)


def _largest_dense(spec: ModelSpec) -> str:
    """The largest layer that no budget reaches, and why not; empty if it is smaller than a tenth of the model. Before
    it comes what the example did not call, if that is a tenth together.
    """
    uncalled = [layer for layer in spec.layers if UNCALLED in layer.reason]
    if uncalled and sum(layer.params for layer in uncalled) >= spec.params / 10:
        return (
            f"; {listed([layer.name for layer in uncalled])} stay dense: no sample that was tried came to them; pass "
            "some that do as example="
        )
    layer = max((layer for layer in spec.layers if layer.reason), key=lambda layer: layer.params, default=None)
    if layer is None or layer.params < spec.params / 10:
        return ""
    return f"; {layer.name or 'what it holds itself'} stays dense: {layer.reason}"


def _require_factored(spec: ModelSpec, budget: Budget, menus: list[Menu]) -> None:
    """Raises BudgetError if every layer stays dense whatever the budget, with the reasons of the largest ones."""
    if any(menu.form.rank is not None for menu in menus):
        return
    layers = sorted(spec.layers, key=lambda layer: -layer.params)
    reasons = [f"{layer.name or 'itself'}: {layer.reason or 'no form of it was faster'}" for layer in layers]
    raise BudgetError(
        f"received a {budget.unit} budget of {budget.share:g} for a model in which nothing can be factored "
        f"({'; '.join(reasons[:NAMED]) or 'no layers'}{'; and more' if len(reasons) > NAMED else ''}); expected a "
        "layer that can be, or a budget of 1; leave the model as it is"
    )


def _fill(menus: list[Menu], room: int) -> None:
    """Spend what is left on single steps, best gain per cost first, until none fits."""
    while True:
        moves = [(gain, index, form) for index, menu in enumerate(menus) for gain, form in menu.moves(room)]
        if not moves:
            return
        _, index, form = max(moves, key=lambda move: move[0])
        room += menus[index].cost()
        menus[index].form = form
        room -= menus[index].cost()


def least_share(spec: ModelSpec, unit: Unit) -> float:
    """The smallest budget that can be had, whatever it does to the outputs."""
    costs = (min([*forms_of(layer, unit)[2].tolist(), layer.dense_cost(unit)]) for layer in spec.candidates)
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
    menus, total = menus_of(spec, energies, inputs, unit), spec.counted(unit)
    segments = _segments(menus)
    cost = _fixed_cost(spec, unit) + sum(menu.cost() for menu in menus)
    loss = sum(menu.loss() for menu in menus) / 2
    points = [ParetoPoint(cost / total, loss)]
    for segment in segments:
        cost, loss = cost + segment.cost, loss - segment.gain / 2
        points.append(ParetoPoint(cost / total, max(loss, 0.0)))
    return points


def _ceil(share: float) -> str:
    """A share rounded up to four digits, so that asking for exactly that succeeds."""
    return f"{np.ceil(share * 10_000) / 10_000:.4f}"
