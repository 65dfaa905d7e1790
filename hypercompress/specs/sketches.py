"""What a generator may read of a layer."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from hypercompress.specs.layers import Side


@dataclass(frozen=True)
class Curvature:
    """Kronecker-factored Fisher of one layer, kept on its smaller side (see ``curvature/kronecker.py``).

    With ``S = E[x x^T]`` (mean over positions), ``G = E[sum over positions of g g^T]`` and ``out <= d``
    (``side="output"``): ``signal = W S W^T`` and ``fisher = G``. With ``d < out`` (``side="input"``):
    ``signal = S`` and ``fisher = W^T G W``. ``gram`` is ``W W^T`` or ``W^T W``. ``mean`` is ``W E[x]`` or
    ``E[x]``: a bias can absorb what a factorization does to it. Nothing of size ``max(out, d)`` squared is
    ever formed. ``inputs`` is the same for the input channels of a layer that `LayerSpec.projects`, always on the input
    side, every tap of the kernel a row of its own: S of one position, ``fisher`` the sum over taps of ``W_t^T G W_t``.
    ``columns`` is ``E[x]`` for these layers; it differs from tap to tap where the padding is.
    Of a grouped layer every group has its own of each, from its own inputs and outputs. ``logits``: the layer gives the
    model's class logits, whose Fisher ``fisher`` is.
    """

    side: Side
    signal: Float[Tensor, "*g m m"]
    fisher: Float[Tensor, "*g m m"]
    gram: Float[Tensor, "*g m m"]
    mean: Float[Tensor, "*g m"]
    inputs: "Curvature | None" = None
    columns: Float[Tensor, " d"] | None = None
    logits: bool = False

    @property
    def bare(self) -> Float[Tensor, "*g m"]:
        """Diagonal of the half that is not seen through the weights: G, or S about its mean."""
        if self.side is Side.OUTPUT:
            return self.fisher.diagonal(dim1=-2, dim2=-1)
        return self.signal.diagonal(dim1=-2, dim2=-1) - self.mean**2


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
        weight: the weight as a matrix, or as one for each group; a view of the teacher's own memory, never written to.
        bias: the layer's bias.
        curvature: measured statistics; ``None`` without data.
        follower: statistics of the norm after the layer.
        feeder: statistics of the norm before it.
    """

    weight: Float[Tensor, "*g o d"]
    bias: Float[Tensor, " out"] | None
    curvature: Curvature | None
    follower: NormStatistics | None
    feeder: NormStatistics | None
