"""Curvature-weighted SVD: the directions of a layer, ordered by the KL they carry.

Replacing ``W`` by a rank-r matrix costs ``1/2 || G^(1/2) (W - W_r) S^(1/2) ||_F^2`` nats (`curvature/`), so the best
``W_r`` truncates the SVD of ``G^(1/2) W S^(1/2) = U diag(s) V^T`` and undoes the roots (EigenDamage, Wang et al. 2019;
generalised Fisher-weighted SVD, arXiv 2505.17974). Only one root is ever formed, on the smaller side: there the
*metric* ``A = B B^T`` (G or S) and the *moment* M (``W S W^T`` or ``W^T G W``) give ``B^T M B = U diag(s^2) U^T``, and

    output side:  W_r = [B^(-T) U_r] [U_r^T B^T W]                input side:  W_r = [W B U_r] [U_r^T B^(-1)]

for any root B; it is Cholesky's, which takes a twentieth of the time of the symmetric one.

Letters: ``m = min(o, d)``, ``r`` the rank. A leading axis ``g`` is there for a layer of several groups only: each group
is a matrix with directions of its own, and the i-th directions of all groups stay or go together.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from hypercompress.specs import Curvature, LayerFactors, Side

SINGULAR = 1e-12  # of the largest eigenvalue


@dataclass(frozen=True)
class Metric:
    """Which halves of the curvature count, and how much of the identity is added to each.

    Args:
        signal: use S (else the identity).
        fisher: use G (else the identity).
        centred: take the mean out of S, because a bias absorbs what happens to it.
        damping: share of the mean eigenvalue that is added to each half, above 0.
    """

    signal: bool = True
    fisher: bool = True
    centred: bool = True
    damping: float = 1e-3


@dataclass(frozen=True)
class Frame:
    """All directions of one layer, best first.

    ``left @ right`` is the identity; keeping the first r columns of ``left`` and rows of ``right`` is the projection
    that the layer's matrix is multiplied by, on ``side``. ``energy`` is s^2: twice the nats lost when a direction goes.
    """

    side: Side
    left: Float[Tensor, "*g m m"]
    right: Float[Tensor, "*g m m"]
    energy: Float[Tensor, "*g m"]

    @property
    def total(self) -> Float[Tensor, " m"]:
        """Energy of the i-th direction, of all groups together; not increasing, as that of no group is."""
        return self.energy if self.energy.ndim == 1 else self.energy.sum(0)

    def stored(self, dtype: torch.dtype) -> "Frame":
        """The directions in another dtype, float32 at least; energies as they are.

        Kept in the dtype of the weights that they will be applied to, those of a large network take half the memory.
        """
        dtype = torch.promote_types(dtype, torch.float32)
        return replace(self, left=self.left.to(dtype), right=self.right.to(dtype))

    def factors(
        self,
        weight: Float[Tensor, "*g o d"],
        rank: int,
        inner: tuple[Float[Tensor, "c q"], Float[Tensor, "q c"]] | None = None,
        taps: int = 1,
    ) -> LayerFactors:
        """The factors of rank ``rank``, scaled so that each direction has the same norm in both; in float32 at least,
        so that those of a weight in half precision are rounded once.

        Args:
            inner: a projection of the input channels, for three factors.
            taps: positions of the kernel.
        """
        left, right = self.kept(rank)
        dtype, project = torch.promote_types(weight.dtype, torch.float32), None
        weight = weight.to(dtype)
        if self.side is Side.OUTPUT:
            expand, reduce = left.to(dtype), right.to(dtype) @ weight
        else:
            expand, reduce = weight @ left.to(dtype), right.to(dtype)
        if inner is not None:
            reduce, project = projected(reduce, inner[0].to(dtype), taps), inner[1].to(dtype)
        return balance(LayerFactors(expand, reduce, None, project))

    def kept(self, rank: int) -> tuple[Float[Tensor, "*g m r"], Float[Tensor, "*g r m"]]:
        """Both parts of the projection onto the best directions."""
        return self.left[..., :rank], self.right[..., :rank, :]


def lost_output(
    side: Side,
    weight: Float[Tensor, "*g o d"],
    left: Float[Tensor, "*g m r"],
    right: Float[Tensor, "*g r m"],
    mean: Float[Tensor, "*g m"],
) -> Float[Tensor, " out"]:
    """Mean of the layer's output outside the projection ``left @ right``, in the projection's dtype."""
    mean = mean.to(left.dtype)
    lost = mean - applied(left, applied(right, mean))
    return (lost if side is Side.OUTPUT else applied(weight.to(left.dtype), lost)).flatten()


def applied(matrix: Float[Tensor, "*g a b"], vector: Float[Tensor, "*g b"]) -> Float[Tensor, "*g a"]:
    """The matrix times the vector, group by group."""
    return matrix @ vector if vector.ndim == 1 else (matrix @ vector[..., None]).squeeze(-1)


def squared(vector: Float[Tensor, "*g m"]) -> Float[Tensor, "*g m m"]:
    """The outer product of the vector with itself, group by group."""
    return vector[..., :, None] * vector[..., None, :]


def add_outer(
    matrix: Float[Tensor, "*g o d"], left: Float[Tensor, "*g o"], right: Float[Tensor, "*g d"], scale: float = 1.0
) -> None:
    """Add ``scale`` times the outer product of two vectors, group by group and in place."""
    if matrix.ndim == 2:
        matrix.addr_(left, right, alpha=scale)
    else:
        matrix.baddbmm_(left[..., :, None], right[..., None, :], alpha=scale)


def balanced(expand: Float[Tensor, "*g o r"], reduce: Float[Tensor, "*g r d"]) -> LayerFactors:
    """Scale each direction to equal norms in both factors: same product, better conditioned gradient descent."""
    inward, outward = reduce.norm(dim=-1), expand.norm(dim=-2)
    tiny = torch.finfo(expand.dtype).tiny
    ratio = inward.sqrt() / outward.clamp_min(tiny).sqrt()
    # Where one factor is zero the other stays as it is, so that the direction can still learn.
    ratio = torch.where((inward > tiny) & (outward > tiny), ratio, torch.ones_like(ratio))
    return LayerFactors(expand * ratio[..., None, :], reduce / ratio[..., None])


def balance(factors: LayerFactors) -> LayerFactors:
    """`balanced`, and the projection of the input channels against the kernel that reads it."""
    reduce, project = factors.reduce, factors.project
    if project is not None:
        pair = balanced(by_channel(reduce, reduce.shape[1] // len(project)), project)
        project, reduce = pair.reduce, by_row(pair.expand, len(reduce))
    pair = balanced(factors.expand, reduce)
    return LayerFactors(pair.expand, pair.reduce, factors.bias, project)


def by_channel(weight: Float[Tensor, "out d"], taps: int) -> Float[Tensor, "rows c"]:
    """A kernel as a matrix of its input channels: one row per output and tap."""
    return weight.reshape(len(weight), -1, taps).mT.flatten(0, 1)


def by_row(weight: Float[Tensor, "rows c"], out: int) -> Float[Tensor, "out d"]:
    """The inverse of `by_channel`."""
    return weight.reshape(out, -1, weight.shape[1]).mT.flatten(1)


def projected(weight: Float[Tensor, "out d"], inward: Float[Tensor, "c q"], taps: int) -> Float[Tensor, "out d_q"]:
    """A kernel over other channels: ``inward`` is applied to the input channels of every tap."""
    return by_row(by_channel(weight, taps) @ inward, len(weight))


def traces(matrix: Float[Tensor, "*g m m"]) -> Float[Tensor, "*g"]:
    """The trace, group by group."""
    return matrix.trace() if matrix.ndim == 2 else matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


def damped(
    matrix: Float[Tensor, "*g m m"], reference: Float[Tensor, "*g m m"], damping: float
) -> Float[Tensor, "*g m m"]:
    """``matrix + c reference`` with c such that the addition has ``damping`` times the trace of ``matrix``."""
    trace, base = traces(matrix), traces(reference)
    scale = torch.where(base > 0, damping * trace / base, torch.zeros_like(trace))
    return matrix + scale[..., None, None] * reference


def roots(matrix: Float[Tensor, "*g m m"]) -> tuple[Float[Tensor, "*g m m"], Float[Tensor, "*g m m"]]:
    """``B`` with ``B B^T = A`` of a symmetric positive matrix, and its inverse.

    Of a singular one, eigenvalues are raised to 1e-12 of the largest.
    """
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    if torch.equal(matrix, torch.diag_embed(diagonal)):  # a guessed metric: nothing to decompose
        values = torch.maximum(diagonal, diagonal.amax(-1, keepdim=True) * SINGULAR).sqrt()
        return torch.diag_embed(values), torch.diag_embed(1 / values)
    lower, failed = torch.linalg.cholesky_ex(matrix)
    pivots = lower.diagonal(dim1=-2, dim2=-1).square()
    if not failed.any() and bool((pivots.amin(-1) > SINGULAR * pivots.amax(-1)).all()):
        return lower, torch.linalg.solve_triangular(lower, identity_like(lower), upper=False)
    values, vectors = torch.linalg.eigh(matrix)
    values = torch.maximum(values, values[..., -1:] * SINGULAR).sqrt()[..., None, :]
    return vectors * values, (vectors / values).mT


def frame_of(side: Side, metric: Float[Tensor, "*g m m"], moment: Float[Tensor, "*g m m"]) -> Frame:
    """Directions of a layer from the two matrices on its smaller side (module docstring).

    A metric of zero (the layer's output has no influence) orders directions by the moment alone, with no energy.
    """
    scale = traces(metric) / metric.shape[-1]
    heard = (scale > 1e-30)[..., None, None]
    root, inverse = roots(torch.where(heard, metric / scale[..., None, None], identity_like(metric)))
    energy, vectors = torch.linalg.eigh(root.mT @ moment @ root)
    energy, vectors = energy.flip(-1).clamp_min(0) * scale.clamp_min(0)[..., None], vectors.flip(-1)
    if side is Side.OUTPUT:
        return Frame(side, inverse.mT @ vectors, vectors.mT @ root.mT, energy)
    return Frame(side, root @ vectors, vectors.mT @ inverse, energy)


def identity_like(matrix: Float[Tensor, "*g m m"]) -> Float[Tensor, "*g m m"]:
    """The identity, for each group; it cannot be written to."""
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device).expand_as(matrix)


def plain_frame(weight: Float[Tensor, "*g o d"], side: Side) -> Frame:
    """Frame of the plain SVD, in float64."""
    weight = weight.double()
    gram = weight @ weight.mT if side is Side.OUTPUT else weight.mT @ weight
    return frame_of(side, identity_like(gram), gram)


def input_curvature(
    weight: Float[Tensor, "out d"],
    weighed: Float[Tensor, "out d"],
    taps: int,
    signal: Float[Tensor, "c c"],
    mean: Float[Tensor, " c"],
) -> Curvature:
    """`specs.Curvature.inputs` from ``weighed``, which is ``G W``, and the second moment of the input channels at one
    position.
    """
    rows = by_channel(weight, taps)
    return Curvature(Side.INPUT, signal, rows.T @ by_channel(weighed, taps), rows.T @ rows, mean)


def weighted_frame(curvature: Curvature, metric: Metric) -> Frame:
    """Frame of a layer in the metric asked for, in float64.

    With S alone it is the whitened SVD (activation-aware, as in ASVD and SVD-LLM).
    """
    signal, fisher, gram = (t.double() for t in (curvature.signal, curvature.fisher, curvature.gram))
    identity = identity_like(gram)
    outside = curvature.side is Side.OUTPUT
    if metric.centred:
        signal = signal - squared(curvature.mean.double())
    # On the output side S is seen through W (its identity is the Gram matrix) and G is bare; else the reverse.
    near_signal, near_fisher = (gram, identity) if outside else (identity, gram)
    s = damped(signal, near_signal, metric.damping) if metric.signal else near_signal
    g = damped(fisher, near_fisher, metric.damping) if metric.fisher else near_fisher
    return frame_of(curvature.side, g, s) if outside else frame_of(curvature.side, s, g)
