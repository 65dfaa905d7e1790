"""Frozen data that the parts exchange: what a model is, what it may cost, what was decided.

Shape letters used throughout the package: ``out`` output features of a layer; ``d`` the columns of its
weight matrix (``in`` for a Linear, ``in * kh * kw`` for a convolution); ``m = min(out, d)`` the side on
which curvature is kept; ``c`` input channels; ``r`` a rank; ``q`` an input rank.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from jaxtyping import Float
from torch import Tensor

from hypercompress.errors import BudgetError


class Status(StrEnum):
    """What became of a layer."""

    FACTORED = "factored"
    KEPT = "kept"
    UNSUPPORTED = "unsupported"
    TIED = "tied"


class Side(StrEnum):
    """The smaller side of a weight matrix, on which its curvature is kept."""

    OUTPUT = "output"
    INPUT = "input"


class Unit(StrEnum):
    """What a budget counts."""

    PARAMS = "params"
    MACS = "macs"


@dataclass(frozen=True)
class Budget:
    """A share of the whole teacher, met from below: exactly one of the two is given.

    Args:
        params: student parameters / teacher parameters, in (0, 1].
        macs: student multiply-accumulates / teacher multiply-accumulates at the spec's input size, in (0, 1].

    Raises:
        BudgetError: none or both given, or a share outside (0, 1].
    """

    params: float | None = None
    macs: float | None = None

    def __post_init__(self) -> None:
        given = [v for v in (self.params, self.macs) if v is not None]
        if len(given) != 1:
            raise BudgetError(
                f"received params={self.params}, macs={self.macs}; expected exactly one budget; give one of the two"
            )
        if not 0.0 < given[0] <= 1.0:
            raise BudgetError(
                f"received a {self.unit} budget of {given[0]:g}; expected a share of the teacher above 0 and at "
                "most 1, such as 0.4; choose one in that range"
            )

    @property
    def unit(self) -> Unit:
        return Unit.PARAMS if self.params is not None else Unit.MACS

    @property
    def share(self) -> float:
        share = self.params if self.params is not None else self.macs
        assert share is not None  # __post_init__ holds
        return share


@dataclass(frozen=True)
class LayerSpec:
    """One weight-bearing module of the teacher.

    Args:
        name: dotted path in the teacher.
        kind: name of the layer's kind (``linear``, ``conv2d``, ...), or the class name of anything else.
        status: ``FACTORED`` here means *may be factored*; allocation can still keep it dense.
        reason: why it is not factored; empty when it may be.
        out, d: shape of the weight matrix; 0 for layers that are no matrix.
        positions: output positions per sample, summed over calls (1 for a Linear on a vector).
        input_positions: positions of the input per sample, summed over calls; 0 for kinds without a kernel.
        calls: times the layer runs in one forward pass.
        params: parameters the module owns, bias included.
        depth: order of the first call in a forward pass, -1 if never called.
        bias: whether the layer has a bias.
        axis: of the channels in the layer's output: 1 for convolutions, -1 for linear layers.
        taps: positions of the input that one output reads: the size of a convolution's kernel.
        strided: whether a convolution has fewer outputs than inputs.
        folded: parameters besides matrix and bias that the factors take in, such as a gain.
        follower: dotted path of the norm that reads this layer's output, if one directly does.
        feeder: dotted path of the last norm called before this layer, if any.
    """

    name: str
    kind: str
    status: Status
    reason: str
    out: int
    d: int
    positions: int
    params: int
    depth: int
    bias: bool
    axis: int = -1
    taps: int = 1
    strided: bool = False
    folded: int = 0
    follower: str | None = None
    feeder: str | None = None
    calls: int = 1
    input_positions: int = 0

    @property
    def channels(self) -> int:
        """Input channels."""
        return self.d // self.taps

    @property
    def projects(self) -> bool:
        """Whether the input channels may be factored too (Tucker-2): a kernel, with curvature on its output side."""
        return self.taps > 1 and self.input_positions > 0 and self.side is Side.OUTPUT

    def cost(self, unit: Unit, rank: int, input_rank: int | None = None) -> int:
        """Cost of the factored layer at rank r, or at input rank q and rank r."""
        if input_rank is None:
            return rank * self.rank_cost(unit)
        before, after = (1, 1) if unit is Unit.PARAMS else (self.input_positions, self.positions)
        return before * input_rank * self.channels + after * rank * (self.taps * input_rank + self.out)

    def step(self, unit: Unit, input_rank: int | None) -> int:
        """Cost of one more rank."""
        return self.cost(unit, 1, input_rank) - (0 if input_rank is None else self.cost(unit, 0, input_rank))

    def input_step(self, unit: Unit, rank: int) -> int:
        """Cost of one more input rank."""
        return self.cost(unit, rank, 1) - self.cost(unit, rank, 0)

    @property
    def rank_params(self) -> int:
        """Parameters of one more rank."""
        return self.out + self.d

    @property
    def rank_macs(self) -> int:
        """Multiply-accumulates per sample of one more rank."""
        return self.positions * (self.out + self.d)

    @property
    def dense_params(self) -> int:
        """Parameters that a factorization replaces: the dense matrix and what is folded into it."""
        return self.out * self.d + self.folded

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates per sample of the dense layer."""
        return self.positions * self.out * self.d

    def rank_cost(self, unit: Unit) -> int:
        return self.rank_params if unit is Unit.PARAMS else self.rank_macs

    def dense_cost(self, unit: Unit) -> int:
        return self.dense_params if unit is Unit.PARAMS else self.dense_macs

    @property
    def side(self) -> Side:
        return Side.OUTPUT if self.out <= self.d else Side.INPUT

    @property
    def full_rank(self) -> int:
        return min(self.out, self.d)

    @property
    def max_rank(self) -> int:
        """Largest rank whose two factors are smaller than the dense matrix (0: factoring never pays)."""
        return min(self.full_rank, max(0, -(-self.out * self.d // self.rank_params) - 1))


@dataclass(frozen=True)
class ModelSpec:
    """The teacher as data: every weight-bearing layer and the whole model's cost.

    Args:
        layers: in order of first call; layers that are never called last.
        params: parameters of the whole teacher, tied ones counted once.
        macs: multiply-accumulates of one sample at ``input_size``.
        input_size: shape of one input without the batch axis; empty when the input is no single tensor.
    """

    layers: tuple[LayerSpec, ...]
    params: int
    macs: int
    input_size: tuple[int, ...]

    @property
    def candidates(self) -> tuple[LayerSpec, ...]:
        """Layers that may be factored."""
        return tuple(layer for layer in self.layers if layer.status is Status.FACTORED)

    def total(self, unit: Unit) -> int:
        return self.params if unit is Unit.PARAMS else self.macs


@dataclass(frozen=True)
class Curvature:
    """Kronecker-factored Fisher of one layer, kept on its smaller side (see ``curvature.py``).

    With ``S = E[x x^T]`` (mean over positions), ``G = E[sum over positions of g g^T]`` and ``out <= d``
    (``side="output"``): ``signal = W S W^T`` and ``fisher = G``. With ``d < out`` (``side="input"``):
    ``signal = S`` and ``fisher = W^T G W``. ``gram`` is ``W W^T`` or ``W^T W``. ``mean`` is ``W E[x]`` or
    ``E[x]``: a bias can absorb what a factorization does to it. Nothing of size ``max(out, d)`` squared is
    ever formed. ``inputs`` is the same for the input channels of a layer that `LayerSpec.projects`, always on the input
    side, every tap of the kernel a row of its own: S of one position, ``fisher`` the sum over taps of ``W_t^T G W_t``.
    ``columns`` is ``E[x]`` for these layers; it differs from tap to tap where the padding is.
    """

    side: Side
    signal: Float[Tensor, "m m"]
    fisher: Float[Tensor, "m m"]
    gram: Float[Tensor, "m m"]
    mean: Float[Tensor, " m"]
    inputs: "Curvature | None" = None
    columns: Float[Tensor, " d"] | None = None


@dataclass(frozen=True)
class NormStatistics:
    """What a norm layer knows of its input and how it scales its output, per channel.

    Args:
        weight, bias: scale and shift.
        mean, variance: running moments; zeros and ones for norms that keep none.
        eps: what the norm adds to the variance.
        moments: whether it keeps running moments (a BatchNorm does, a LayerNorm does not).
    """

    weight: Float[Tensor, " c"]
    bias: Float[Tensor, " c"]
    mean: Float[Tensor, " c"]
    variance: Float[Tensor, " c"]
    eps: float
    moments: bool


@dataclass(frozen=True)
class Sketch:
    """What a generator may read of one layer.

    Args:
        weight: the weight as a matrix; a view of the teacher's own memory, never written to.
        bias: the layer's bias.
        curvature: measured statistics; ``None`` without data.
        follower: statistics of the norm after the layer.
        feeder: statistics of the norm before it.
    """

    weight: Float[Tensor, "out d"]
    bias: Float[Tensor, " out"] | None
    curvature: Curvature | None
    follower: NormStatistics | None
    feeder: NormStatistics | None


@dataclass(frozen=True)
class LayerFactors:
    """``expand @ reduce`` stands in for the layer's weight matrix; ``bias`` replaces its bias if given.

    With ``project`` the layer is factored on both sides (Tucker-2): ``reduce`` holds a kernel over its q channels.
    """

    expand: Float[Tensor, "out r"]
    reduce: Float[Tensor, "r d"]
    bias: Float[Tensor, " out"] | None = None
    project: Float[Tensor, "q c"] | None = None

    @property
    def rank(self) -> int:
        return int(self.reduce.shape[0])

    def product(self) -> Float[Tensor, "out d"]:
        """The matrix that the factors stand for."""
        if self.project is None:
            return self.expand @ self.reduce
        kernel = self.reduce.unflatten(1, (len(self.project), -1))
        return self.expand @ torch.einsum("rqt,qc->rct", kernel, self.project).flatten(1)

    @property
    def input_rank(self) -> int | None:
        return None if self.project is None else int(self.project.shape[0])


@dataclass(frozen=True)
class Afterwards:
    """What will be done with a student once it is generated.

    Args:
        steps: distillation steps.
        refit: whether its output factors are refitted (`reconstruction.py`).
    """

    steps: int = 0
    refit: bool = False


@dataclass(frozen=True)
class RankPlan:
    """Which layer gets which rank.

    Args:
        ranks: rank of each factored layer; candidates that are absent stay dense.
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
