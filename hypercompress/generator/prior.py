"""Curvature without data, from weights and norm statistics alone.

A BatchNorm knows the variance of the output it reads, hence the diagonal of ``W S W^T``; the norm before a layer gives
mean and variance of its input (through a ReLU if the layer is a convolution: moments of a rectified Gaussian). For G,
one unit of change of any *normalised* channel is taken to matter as much as any other: ``G = diag(gamma^2 / sigma^2)``.
Where there is no norm to read, S and G are the identity and G is scaled such that the layer's output has unit power.
This is a guess, so its energies are not nats; it is what the hypernetwork starts from and corrects without data.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from hypercompress.factorize import applied, input_curvature, squared
from hypercompress.specs import Curvature, LayerSpec, Side, Sketch

ROOM = 2**28  # bytes of guessed curvature that are kept rather than guessed again


def input_moments(layer: LayerSpec, sketch: Sketch) -> tuple[Float[Tensor, "*g d"], Float[Tensor, "*g d"]]:
    """Guessed mean and variance of each column of the layer's input.

    Of a transposed convolution with a stride a column is zero wherever its tap falls between the inputs.
    """
    norm, weight = sketch.feeder, sketch.weight
    taps, shape = layer.taps, (*weight.shape[:-2], layer.d)
    if norm is None or norm.weight.numel() * taps != layer.groups * layer.d:
        return weight.new_zeros(shape).double(), weight.new_ones(shape).double()
    mean, spread = norm.bias.double(), norm.weight.double().abs().clamp_min(1e-6)
    if layer.axis != 1:
        variance = spread**2
    else:
        mean, variance = rectified_moments(mean, spread)
    share = min(1.0, max(1, layer.matrix_positions) / max(1, layer.positions))
    mean, variance = share * mean, share * (variance + (1 - share) * mean**2)
    mean, variance = mean.repeat_interleave(taps), variance.clamp_min(1e-8).repeat_interleave(taps)
    return mean.reshape(shape), variance.reshape(shape)


def rectified_moments(mean: Float[Tensor, " c"], std: Float[Tensor, " c"]) -> tuple[Tensor, Tensor]:
    """Mean and variance of ``max(z, 0)`` for ``z ~ N(mean, std^2)``."""
    z = mean / std
    density = torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)
    mass = torch.special.ndtr(z)
    first = mean * mass + std * density
    second = (mean**2 + std**2) * mass + mean * std * density
    return first, (second - first**2).clamp_min(0)


def output_gain(layer: LayerSpec, sketch: Sketch, power: Float[Tensor, "*g o"]) -> Float[Tensor, "*g o"]:
    """Guessed diagonal of G; ``power`` is the variance of each output channel."""
    norm = sketch.follower
    if norm is None or norm.weight.numel() != layer.out or not norm.moments:
        return torch.ones_like(power) / power.sum().clamp_min(1e-12)
    gain = (norm.weight.double() ** 2 / (norm.variance.double() + norm.eps)).reshape(power.shape)
    return gain / (gain * power).sum().clamp_min(1e-12)


def prior_curvature(layer: LayerSpec, sketch: Sketch) -> Curvature:
    """The guessed stand-in for a measured `Curvature`: same fields, same side, energies relative.

    The large products have the precision of the weights; what is decomposed is float64.
    """
    weight = precise(sketch)
    mean, variance = input_moments(layer, sketch)
    power = applied(weight.square(), variance.to(weight)).double().clamp_min(1e-12)
    scale, norm = torch.ones_like(power), sketch.follower
    if norm is not None and norm.weight.numel() == layer.out and norm.moments:
        known = norm.variance.double().clamp_min(1e-12).reshape(power.shape)
        scale, power = (known / power).sqrt(), known
    gain = output_gain(layer, sketch, power)
    if layer.side is Side.INPUT:
        signal = torch.diag_embed(variance) + squared(mean)
        fisher = (weight.mT * gain.to(weight)[..., None, :]) @ weight
        return Curvature(layer.side, signal, fisher.double(), (weight.mT @ weight).double(), mean)
    centre = applied(weight, mean.to(weight)).double()
    signal = ((weight * variance.to(weight)[..., None, :]) @ weight.mT).double()
    signal = signal * scale[..., :, None] * scale[..., None, :] + squared(centre)
    inputs, columns = None, None
    if layer.projects:
        middle = mean[:: layer.taps]
        channels = torch.diag(variance[:: layer.taps]) + squared(middle)
        inputs, columns = guessed_inputs(layer, sketch, gain, channels, middle), mean
    gram = (weight @ weight.mT).double()
    return Curvature(layer.side, signal, torch.diag_embed(gain), gram, centre, inputs, columns)


def guessed_inputs(
    layer: LayerSpec, sketch: Sketch, gain: Float[Tensor, " out"], channels: Float[Tensor, "c c"], mean: Tensor
) -> Curvature:
    """Guessed curvature of the input channels from the diagonal of G."""
    weight = precise(sketch)
    return input_curvature(weight, weight * gain.to(weight)[:, None], layer.taps, channels, mean)


def precise(sketch: Sketch) -> Float[Tensor, "*g o d"]:
    """The weight in float32 at least: what is half precision is too coarse for second moments."""
    return sketch.weight.to(torch.promote_types(sketch.weight.dtype, torch.float32))


def curvature_bytes(curvature: Curvature) -> int:
    """Bytes of its matrices."""
    own = sum(t.numel() * t.element_size() for t in (curvature.signal, curvature.fisher, curvature.gram))
    return own + (0 if curvature.inputs is None else curvature_bytes(curvature.inputs))
