"""What a generator answers, ranks and factors, and what is done to the student that is built of them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor

from hypercompress.specs.budget import Unit


@dataclass(frozen=True)
class LayerFactors:
    """``expand @ reduce`` stands in for the layer's weight matrix, or group by group for its matrices; ``bias``
    replaces its bias if given.

    With ``project`` the layer is factored on both sides (Tucker-2): ``reduce`` holds a kernel over its q channels.
    """

    expand: Float[Tensor, "*g o r"]
    reduce: Float[Tensor, "*g r d"]
    bias: Float[Tensor, " out"] | None = None
    project: Float[Tensor, "q c"] | None = None

    @property
    def rank(self) -> int:
        return int(self.reduce.shape[-2])

    def product(self) -> Float[Tensor, "*g o d"]:
        """The matrix, or matrices, that the factors stand for."""
        if self.project is None:
            return self.expand @ self.reduce
        kernel = self.reduce.unflatten(1, (len(self.project), -1))
        return self.expand @ torch.einsum("rqt,qc->rct", kernel, self.project).flatten(1)

    def to(self, dtype: torch.dtype) -> "LayerFactors":
        """All of them in another dtype."""
        bias, project = (None if tensor is None else tensor.to(dtype) for tensor in (self.bias, self.project))
        return LayerFactors(self.expand.to(dtype), self.reduce.to(dtype), bias, project)

    @property
    def input_rank(self) -> int | None:
        return None if self.project is None else int(self.project.shape[0])


@dataclass(frozen=True)
class RankPlan:
    """Which layer gets which rank.

    Args:
        ranks: rank of each factored layer, of every group the same; candidates that are absent stay dense.
        unit: what ``cost`` counts.
        cost: the student's parameters or multiply-accumulates.
        achieved: ``cost`` as a share of the teacher.
        predicted_kl: nats of KL(teacher || student) the additive model predicts; ``None`` without curvature.
        input_ranks: input rank of each factored layer that is factored on both sides.
    """

    ranks: Mapping[str, int]
    unit: Unit
    cost: int
    achieved: float
    predicted_kl: float | None
    input_ranks: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Factors:
    """Everything a generator says about a student: factors by layer, and small changes to other parameters.

    ``deltas`` maps parameter names of the *teacher* (norm weights and biases) to an additive change.
    """

    layers: Mapping[str, LayerFactors]
    deltas: Mapping[str, Float[Tensor, " c"]]


@dataclass(frozen=True)
class Generation:
    """A generator's answer. ``strength`` in [0, 1] scales what a hypernetwork adds (0: the analytic student)."""

    factors: Factors
    plan: RankPlan
    generator: str
    strength: float


class Refit(StrEnum):
    """Which factors are fitted to a layer's real inputs (`reconstruction/`); the last needs more images."""

    NONE = "none"
    OUTPUTS = "outputs"
    BOTH = "both"


@dataclass(frozen=True)
class KlScale:
    """What a predicted KL is multiplied by (`probe.py`); 1 is the additive model as it is.

    Args:
        generated: of students as generated.
        refitted: of those whose factors are refitted.
    """

    generated: float = 1.0
    refitted: float = 1.0

    @property
    def best(self) -> float:
        """Of the students that the guard would keep."""
        return min(self.generated, self.refitted)

    def of(self, refit: Refit) -> float:
        """Of a student that was finished so."""
        return self.generated if refit is Refit.NONE else self.refitted


@dataclass(frozen=True)
class Finishing:
    """What held-out images decided, and what was done to the student since it was built.

    Args:
        tilt: of the allocation, by depth (`generator.by_depth`).
        refitted: what is fitted wherever it can be.
        norms: ``kept`` or ``re-estimated``.
        layers: what was fitted of each factored layer; empty if nothing was.
    """

    tilt: float = 0.0
    refitted: Refit = Refit.NONE
    norms: str = "kept"
    layers: Mapping[str, Refit] = field(default_factory=dict)
