"""What may stand in a layer's place against what it costs: the corners worth having, and what is lost at each rank."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Form:
    """What stands in a layer's place; no rank: the dense layer."""

    rank: int | None = None
    input_rank: int | None = None


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
