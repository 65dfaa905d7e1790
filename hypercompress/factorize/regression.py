"""Regression of one layer on the inputs that it really gets, by least squares and by reduced rank.

A student's layer gets inputs x that the layers before it have changed, and should give what its teacher's layer gives,
y. With the output factor alone free that is `least_squares`. With both free the best matrix of rank r is that of
reduced-rank regression (Izenman 1975; "asymmetric reconstruction" in Zhang et al. 2016, sec. 3.2), here in the metric
G of `linalg`: regress y on all of x,

    W_x = W + (E[y x^T] - W E[x x^T]) (E[x x^T] + ridge I)^(-1),

and truncate ``G^(1/2) W_x E[x x^T]^(1/2)``. The ridge pulls towards the teacher's own W, which is the answer where x
is what the teacher's layer gets; `W_x` need not lie in the row space of W: what some inputs lack is read from others.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from hypercompress.factorize.linalg import balanced, damped, frame_of, identity_like, traces
from hypercompress.specs import Curvature, LayerFactors, Side

DAMPING = 1e-3  # share of the mean eigenvalue that is added to each half of the metric
TINY = 1e-9  # of the mean eigenvalue: what a matrix without full rank is inverted with


def reduced_rank(
    weight: Float[Tensor, "*g o d"],
    curvature: Curvature,
    moment: Float[Tensor, "*g d d"],
    cross: Float[Tensor, "*g o d"],
    rank: int,
    ridge: float,
) -> LayerFactors:
    """The best factors of a rank for inputs of second moment ``moment``, in float64.

    Args:
        weight: W of the teacher's layer.
        curvature: of that layer; read are its side and, on that side, what holds G.
        moment: ``E[x x^T]`` of the student's inputs, about their mean if an intercept is free.
        cross: ``E[y x^T]`` of the teacher's outputs, likewise.
        rank: r, at most the full one.
        ridge: weight of W, as a share of the mean eigenvalue of ``moment``; above 0 where ``moment`` is singular.
    """
    weight, moment, cross, fisher = (t.double() for t in (weight, moment, cross, curvature.fisher))
    fitted = weight + _solved(moment, cross - weight @ moment, max(ridge, TINY))
    if curvature.side is Side.OUTPUT:
        metric = damped(fisher, identity_like(fisher), DAMPING)
        frame = frame_of(curvature.side, metric, damped(fitted @ moment @ fitted.mT, fitted @ fitted.mT, DAMPING))
        left, right = frame.kept(rank)
        return balanced(left, right @ fitted)
    # W_x = W T, because y lies in the column space of W: so W_x^T G W_x = T^T (W^T G W) T.
    change = _solved(curvature.gram.double(), fitted.mT @ weight, TINY).mT
    metric = damped(moment, identity_like(moment), DAMPING)
    frame = frame_of(curvature.side, metric, damped(change.mT @ fisher @ change, fitted.mT @ fitted, DAMPING))
    left, right = frame.kept(rank)
    return balanced(fitted @ left, right)


def _solved(matrix: Float[Tensor, "*g d d"], wanted: Float[Tensor, "*g o d"], ridge: float) -> Float[Tensor, "*g o d"]:
    """``wanted (matrix + ridge t I)^(-1)``, t the mean eigenvalue of the symmetric ``matrix``; 0 if that is 0.

    The ridge is on the matrix while this runs: of many inputs another copy of it would be most of the memory.
    """
    scale = traces(matrix) / matrix.shape[-1]
    # Where nothing comes in there is nothing to fit, and any ridge above zero will do.
    weight = torch.where(scale > 0, ridge * scale, torch.ones_like(scale))
    diagonal = matrix.diagonal(dim1=-2, dim2=-1)
    before = diagonal.clone()
    diagonal.add_(weight[..., None])
    try:
        solution: Tensor = torch.linalg.solve(matrix, wanted.mT)
    finally:
        diagonal.copy_(before)
    return solution.mT


def least_squares(
    h: Float[Tensor, "n r"],
    y: Float[Tensor, "n out"],
    expand: Float[Tensor, "out r"],
    shift: Float[Tensor, " out"] | None,
    ridge: float,
    spread: float,
) -> tuple[Float[Tensor, "out r"], Float[Tensor, " out"]]:
    """The output factor E and the intercept c for reduced inputs ``h``, near ``expand`` and ``shift``, in float64.

    Args:
        shift: ``None``: no intercept, the fit goes through zero and no variance is given back.
        ridge: weight of what was there, as a share of the mean eigenvalue of ``E[h h^T]``.
        spread: share of the lost log standard deviation that is given back, in [0, 1].
    """
    h, y = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (h, y))
    free = shift is not None
    start = y.new_zeros(y.shape[1]) if shift is None else shift.to(y.dtype)
    residual = torch.addmm(y, h, expand.to(h.dtype).T, alpha=-1)  # rows may be all the memory there is: one copy
    residual -= start
    centre_h, miss = (h.mean(0), residual.mean(0)) if free else (h.new_zeros(h.shape[1]), torch.zeros_like(start))
    residual -= miss
    h = h - centre_h
    moment, cross = (h.T @ h).double() / len(h), (h.T @ residual).double() / len(h)
    fitted = expand.double() + _solved(moment, cross.T, ridge)
    if not free:
        return fitted, start.double()
    centre = start.double() + miss.double() / (1 + ridge) + expand.double() @ centre_h.double()
    # `var` over rows takes three times as long, and the residual is not needed any more.
    before = torch.sub(y, y.mean(0), out=residual).square_().mean(0).double()
    after = ((fitted @ moment) * fitted).sum(1)
    ratio = (before.clamp_min(1e-12) / after.clamp_min(1e-12)).clamp(0.25, 4.0)
    fitted = fitted * ratio[:, None] ** (spread / 2)
    return fitted, centre - fitted @ centre_h.double()
