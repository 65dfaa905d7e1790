"""What a student may cost."""

from dataclasses import dataclass
from enum import StrEnum
from numbers import Real
from typing import Any

from hypercompress.errors import BudgetError


class Unit(StrEnum):
    """What a budget counts."""

    PARAMS = "params"
    MACS = "macs"
    LATENCY = "latency"


COUNTED = (Unit.PARAMS, Unit.MACS)  # these need no measurement


@dataclass(frozen=True)
class Budget:
    """A share of the whole teacher, met from below: exactly one of the two is given.

    Args:
        params: student parameters / teacher parameters, in (0, 1].
        macs: student multiply-accumulates / teacher multiply-accumulates at the spec's input size, in (0, 1].
        latency: time of a forward pass of the student / of the teacher, measured on this machine, in (0, 1].

    Raises:
        BudgetError: none or several given, or one that is no number in (0, 1].
    """

    params: float | None = None
    macs: float | None = None
    latency: float | None = None

    def __post_init__(self) -> None:
        given = [v for v in (self.params, self.macs, self.latency) if v is not None]
        if len(given) != 1:
            raise BudgetError(
                f"received params={self.params}, macs={self.macs}, latency={self.latency}; expected exactly one "
                "budget; give one of the three"
            )
        require_share(self.unit, given[0])
        object.__setattr__(self, self.unit.value, float(given[0]))  # numpy's numbers cannot be written into a report

    @property
    def unit(self) -> Unit:
        return next(unit for unit in Unit if getattr(self, unit) is not None)

    @property
    def share(self) -> float:
        share: float = getattr(self, self.unit)
        return share


def require_share(unit: Unit, share: Any) -> None:
    """Raises BudgetError if a share of the teacher is no number in (0, 1]."""
    if isinstance(share, bool) or not isinstance(share, Real):
        raise BudgetError(
            f"received a {unit} budget of {share!r}; expected a share of the teacher as a number, such as 0.4; pass "
            f"Budget({unit}=0.4)"
        )
    if not 0.0 < float(share) <= 1.0:
        raise BudgetError(
            f"received a {unit} budget of {float(share):g}; expected a share of the teacher above 0 and at most 1, "
            "such as 0.4; choose one in that range"
        )


def require_budget(budget: Any) -> None:
    """Raises BudgetError if it is no `Budget`: a bare number does not say of what."""
    if not isinstance(budget, Budget):
        example = f"{budget:g}" if isinstance(budget, float) and 0 < budget <= 1 else "0.4"
        raise BudgetError(
            f"received {budget!r} as a budget; expected a Budget, which says what is counted; pass "
            f"Budget(params={example})"
        )
