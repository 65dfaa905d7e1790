"""Give back what truncation takes from a layer's output: its mean, and part of its variance.

A bias, or the BatchNorm behind the layer, absorbs both at no cost in size. That is why S is centred there: an error in
the mean costs nothing.
"""

from jaxtyping import Float
from torch import Tensor

from hypercompress.factorize import lost_output, projected, squared
from hypercompress.specs import Curvature, LayerSpec, Side, Sketch


def absorbs(layer: LayerSpec, sketch: Sketch) -> bool:
    """Whether something behind the layer can take a constant shift of its output: its bias, or a BatchNorm's.

    Layers that share a weight each read another mean, of which only the sum is known: nothing is given back there.
    """
    if layer.shared:
        return False
    norm = sketch.follower
    return sketch.bias is not None or (norm is not None and norm.moments and norm.weight.numel() == layer.out)


def give_back(
    layer: LayerSpec,
    sketch: Sketch,
    curvature: Curvature,
    left: Float[Tensor, "*g m r"],
    right: Float[Tensor, "*g r m"],
    *,
    spread: float | Float[Tensor, ""],
    shift: float | Float[Tensor, ""] = 0.0,
    inner: tuple[Float[Tensor, "c q"], Float[Tensor, "q c"]] | None = None,
) -> tuple[Float[Tensor, " out"] | None, dict[str, Float[Tensor, " out"]]]:
    """New bias of a factored layer, or the changes of the BatchNorm behind it; only where `absorbs` holds.

    Args:
        left, right: the projection on the layer's side; the work is done in their dtype.
        spread: share of the lost log standard deviation that a BatchNorm's scale gives back.
        shift: relative change of the mean that is given back.
        inner: the projection of the input channels, if there is one. Its mean is given back, its variance is not.

    Returns:
        the bias, or ``None`` and additive changes by parameter name of the teacher.
    """
    lost = lost_output(curvature.side, sketch.weight, left, right, curvature.mean)
    if inner is not None:
        assert curvature.columns is not None  # measured or guessed with what the projection was made from
        mean = curvature.columns.to(left.dtype)
        missed = mean - projected(mean[None], (inner[0] @ inner[1]).T, layer.taps)[0]
        lost = lost + left @ (right @ (sketch.weight.to(left.dtype) @ missed))
    lost = lost * (1 + shift)
    if sketch.bias is not None:
        return (sketch.bias.to(lost.dtype) + lost).to(sketch.bias.dtype), {}
    norm, name = sketch.follower, layer.follower
    assert norm is not None  # absorbs() holds
    assert name is not None
    ratio = variance_ratio(curvature, sketch.weight.to(left.dtype), left, right)
    scale = norm.weight.to(left.dtype)
    grown = scale * ratio ** (spread / 2)
    back = grown / (norm.variance.to(left.dtype) + norm.eps).sqrt() * lost
    changes = {f"{name}.weight": grown - scale, f"{name}.bias": back}
    return None, {key: value.to(norm.weight.dtype) for key, value in changes.items()}


def variance_ratio(
    curvature: Curvature,
    weight: Float[Tensor, "*g o d"],
    left: Float[Tensor, "*g m r"],
    right: Float[Tensor, "*g r m"],
) -> Float[Tensor, " out"]:
    """Variance of each output channel before truncation over after, held within [1/4, 4]."""
    signal = curvature.signal.to(left.dtype) - squared(curvature.mean).to(left.dtype)
    if curvature.side is Side.OUTPUT:
        before, expand = signal.diagonal(dim1=-2, dim2=-1), left
    else:
        before, expand = ((weight @ signal) * weight).sum(-1), weight @ left
    after = ((expand @ (right @ signal @ right.mT)) * expand).sum(-1)
    return (before.clamp_min(1e-12) / after.clamp_min(1e-12)).clamp(0.25, 4.0).flatten()
