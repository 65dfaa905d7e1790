"""The teacher as data: its layers, and what they cost in each form."""

from collections.abc import Set
from dataclasses import dataclass, replace
from enum import StrEnum

from hypercompress.errors import BudgetError
from hypercompress.specs.budget import Unit

UNCALLED = "its forward was never called in a pass of the example"


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


@dataclass(frozen=True)
class Measured:
    """Time of a layer in a forward pass of the teacher, and of its forms, in nanoseconds (`latency.py`).

    A layer that was timed is only given forms that were found faster, whatever the budget counts.

    Args:
        dense: as it is.
        forms: rank, input rank (0: none) and time of each form that was found faster.
    """

    dense: int
    forms: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class LayerSpec:
    """One weight-bearing module of the teacher.

    Args:
        name: dotted path in the teacher.
        kind: name of the layer's kind (``linear``, ``conv2d``, ...), or the class name of anything else.
        status: ``FACTORED`` here means *may be factored*; allocation can still keep it dense.
        reason: why it is not factored; empty when it may be.
        out: output channels of all groups; 0 for layers that are no matrix.
        d: columns of the weight matrix, or of that of one group; 0 for layers that are no matrix.
        positions: output positions per sample, summed over calls (1 for a Linear on a vector).
        input_positions: positions of the input per sample, summed over calls; 0 for kinds without a kernel.
        source_positions: the same for kinds whose matrix runs there (transposed convolutions); 0 for all others.
        calls: times the layer runs in one forward pass.
        shared: dotted paths of further layers that hold this very weight, in order of their first calls. They are one
            layer with it: positions and calls are sums over all of them, and theirs are 0.
        measured: times, if they were taken.
        params: parameters the module owns, bias included; of several layers that are one, the weight once.
        depth: order of the first call in a forward pass, -1 if never called.
        bias: whether the layer has a bias.
        axis: of the channels in the layer's output: 1 for convolutions, -1 for linear layers.
        taps: positions of the input that one output reads: the size of a convolution's kernel.
        strided: whether a convolution has fewer outputs than inputs.
        groups: independent matrices side by side, each of ``out / groups`` rows; all get the same rank.
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
    groups: int = 1
    folded: int = 0
    follower: str | None = None
    feeder: str | None = None
    calls: int = 1
    input_positions: int = 0
    measured: Measured | None = None
    source_positions: int = 0
    shared: tuple[str, ...] = ()

    @property
    def paths(self) -> tuple[str, ...]:
        """Dotted paths of all that is factored with this layer, itself first."""
        return (self.name, *self.shared)

    @property
    def matrix_positions(self) -> int:
        """Positions per sample at which the matrix itself runs, and with it the factor that holds the kernel."""
        return self.source_positions or self.positions

    @property
    def channels(self) -> int:
        """Input channels."""
        return self.groups * self.d // self.taps

    @property
    def rows(self) -> int:
        """Rows of the weight matrix, or of that of one group."""
        return self.out // self.groups

    @property
    def projects(self) -> bool:
        """Whether the input channels may be factored too (Tucker-2): one kernel, with curvature on its output side."""
        return self.taps > 1 and self.groups == 1 and self.input_positions > 0 and self.side is Side.OUTPUT

    def cost(self, unit: Unit, rank: int, input_rank: int | None = None) -> int:
        """Cost of the layer at rank r, or at input rank q and rank r; of latency, a form that was measured."""
        if unit is Unit.LATENCY:
            return next(time for r, q, time in self._times().forms if (r, q or None) == (rank, input_rank))
        if input_rank is None:
            return rank * self.rank_cost(unit)
        before, after = (1, 1) if unit is Unit.PARAMS else (self.input_positions, self.positions)
        return before * input_rank * self.channels + after * rank * (self.taps * input_rank + self.out)

    def step(self, unit: Unit, input_rank: int | None) -> int:
        """Cost of one more rank; of latency, in proportion to the multiply-accumulates."""
        if unit is Unit.LATENCY:
            return self._in_time(self.step(Unit.MACS, input_rank))
        return self.cost(unit, 1, input_rank) - (0 if input_rank is None else self.cost(unit, 0, input_rank))

    def input_step(self, unit: Unit, rank: int) -> int:
        """Cost of one more input rank; of latency, in proportion to the multiply-accumulates."""
        if unit is Unit.LATENCY:
            return self._in_time(self.input_step(Unit.MACS, rank))
        return self.cost(unit, rank, 1) - self.cost(unit, rank, 0)

    @property
    def rank_params(self) -> int:
        """Parameters of one more rank, in every group."""
        return self.out + self.groups * self.d

    @property
    def rank_macs(self) -> int:
        """Multiply-accumulates per sample of one more rank, in every group."""
        return self.positions * self.out + self.matrix_positions * self.groups * self.d

    @property
    def dense_params(self) -> int:
        """Parameters that a factorization replaces: the dense matrix and what is folded into it."""
        return self.out * self.d + self.folded

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates per sample of the dense layer."""
        return self.matrix_positions * self.out * self.d

    def rank_cost(self, unit: Unit) -> int:
        if unit is Unit.LATENCY:
            return self._in_time(self.rank_macs)
        return self.rank_params if unit is Unit.PARAMS else self.rank_macs

    def dense_cost(self, unit: Unit) -> int:
        if unit is Unit.LATENCY:
            return self._times().dense
        return self.dense_params if unit is Unit.PARAMS else self.dense_macs

    def _times(self) -> Measured:
        if self.measured is None:
            raise BudgetError(
                f"received a latency budget for {self.name}, which was not measured; expected times; measure them first"
            )
        return self.measured

    def _in_time(self, macs: int) -> int:
        return max(1, self._times().dense * macs // max(1, self.dense_macs))

    @property
    def side(self) -> Side:
        return Side.OUTPUT if self.rows <= self.d else Side.INPUT

    @property
    def full_rank(self) -> int:
        return min(self.rows, self.d)

    @property
    def max_rank(self) -> int:
        """Largest rank whose two factors are smaller than the dense matrix in both counted units (0: factoring never
        pays).
        """
        costs = [(self.out * self.d, self.rank_params), (self.dense_macs, self.rank_macs)]
        # A layer that was never called has no multiply-accumulates to compare.
        return min(self.full_rank, *(max(0, -(-dense // step) - 1) for dense, step in costs if step))


@dataclass(frozen=True)
class ModelSpec:
    """The teacher as data: every weight-bearing layer and the whole model's cost.

    Args:
        layers: in order of first call; layers that are never called last.
        params: parameters of the whole teacher, tied ones counted once.
        macs: multiply-accumulates of one sample at ``input_size``.
        input_size: shape of one input without the batch axis; empty when the input is no single tensor.
        latency: nanoseconds of a forward pass, if measured.
    """

    layers: tuple[LayerSpec, ...]
    params: int
    macs: int
    input_size: tuple[int, ...]
    latency: int = 0

    @property
    def candidates(self) -> tuple[LayerSpec, ...]:
        """Layers that may be factored."""
        return tuple(layer for layer in self.layers if layer.status is Status.FACTORED)

    def without(self, names: Set[str], reason: str) -> "ModelSpec":
        """The spec in which these layers stay dense for a reason; itself if there are none."""
        if not names:
            return self
        layers = (
            replace(layer, status=Status.UNSUPPORTED, reason=reason) if layer.name in names else layer
            for layer in self.layers
        )
        return replace(self, layers=tuple(layers))

    def total(self, unit: Unit) -> int:
        return {Unit.PARAMS: self.params, Unit.MACS: self.macs, Unit.LATENCY: self.latency}[unit]

    def counted(self, unit: Unit) -> int:
        """`total`, where a budget is to be a share of it.

        Raises:
            BudgetError: it is nothing.
        """
        if (total := self.total(unit)) > 0 or unit is Unit.LATENCY:  # times that are missing are told layer by layer
            return total
        raise BudgetError(
            f"received a budget of {unit} for a model in which none are counted; expected one of which some are, as of "
            "linear layers and convolutions that run; choose a budget of params"
        )
