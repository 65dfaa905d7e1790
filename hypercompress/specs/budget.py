"""What a student may cost."""

from dataclasses import dataclass
from enum import StrEnum

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
        BudgetError: none or several given, or a share outside (0, 1].
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
        if not 0.0 < given[0] <= 1.0:
            raise BudgetError(
                f"received a {self.unit} budget of {given[0]:g}; expected a share of the teacher above 0 and at "
                "most 1, such as 0.4; choose one in that range"
            )

    @property
    def unit(self) -> Unit:
        return next(unit for unit in Unit if getattr(self, unit) is not None)

    @property
    def share(self) -> float:
        share: float = getattr(self, self.unit)
        return share
