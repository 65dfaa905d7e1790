"""The closed-form generators: ``svd``, ``whitened``, ``kfac`` and, without data, ``prior``.

They ship, they are the fallback, and they are what the hypernetwork must beat.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hypercompress.allocation import allocate
from hypercompress.errors import GeneratorError
from hypercompress.factorize import Frame, Metric, plain_frame, weighted_frame
from hypercompress.generator.prior import prior_curvature
from hypercompress.generator.protocol import Frames, Sketches
from hypercompress.specs import Budget, Curvature, Factors, Generation, LayerFactors, LayerSpec, ModelSpec, Sketch


@dataclass(frozen=True)
class AnalyticGenerator:
    """Truncation in a fixed metric, ranks by water-filling.

    Args:
        name: as on the command line.
        metric: which curvature weighs the directions; ``None``: plain SVD of the weights.
        prior: guess the curvature from norm statistics instead of reading measured ones.
    """

    name: str
    metric: Metric | None
    prior: bool = False

    @property
    def needs_data(self) -> bool:
        return self.metric is not None and not self.prior

    @property
    def nats(self) -> bool:
        """Whether half an energy is nats of KL: only with both halves of measured curvature."""
        return self.needs_data and self.metric is not None and self.metric.signal and self.metric.fisher

    def curvatures(self, spec: ModelSpec, sketches: Sketches) -> dict[str, Curvature]:
        """The curvature of each candidate that this generator reads: measured, or guessed."""
        if self.prior:
            return {layer.name: prior_curvature(layer, sketches[layer.name]) for layer in spec.candidates}
        measured = {layer.name: sketches[layer.name].curvature for layer in spec.candidates}
        missing = [name for name, curvature in measured.items() if curvature is None]
        if missing:
            raise GeneratorError(
                f"received no calibration data; expected some for generator '{self.name}', which weighs directions by "
                "measured curvature; pass --data, or choose svd, prior or hypernet"
            )
        return {name: curvature for name, curvature in measured.items() if curvature is not None}

    def frames(self, spec: ModelSpec, sketches: Sketches) -> Frames:
        """All directions of each candidate, best first in this generator's metric."""
        if self.metric is None:
            return {layer.name: plain_frame(sketches[layer.name].weight, layer.side) for layer in spec.candidates}
        curvatures = self.curvatures(spec, sketches)
        frames = {}
        for layer in spec.candidates:
            centred = self.metric.centred and absorbs(layer, sketches[layer.name])
            frames[layer.name] = weighted_frame(curvatures[layer.name], replace(self.metric, centred=centred))
        return frames

    def energies(self, frames: Frames) -> dict[str, Tensor]:
        """Nats where they are known; else relative to the layer's whole, the only comparable unit left."""
        if self.nats:
            return {name: frame.energy for name, frame in frames.items()}
        return {name: frame.energy / frame.energy.sum().clamp_min(1e-300) for name, frame in frames.items()}

    def generate(self, spec: ModelSpec, sketches: Sketches, budget: Budget) -> Generation:
        frames = self.frames(spec, sketches)
        plan = allocate(spec, self.energies(frames), budget, nats=self.nats)
        means = (
            {} if self.metric is None else {n: c.mean for n, c in self.curvatures(spec, sketches).items()}
        )
        layers, deltas = {}, {}
        for layer in spec.candidates:
            if layer.name not in plan.ranks:
                continue
            frame, sketch = frames[layer.name], sketches[layer.name]
            factors = frame.factors(sketch.weight, plan.ranks[layer.name])
            mean = means.get(layer.name)
            if mean is not None:
                shift = frame.lost_output(sketch.weight, factors.rank, mean)
                factors, delta = absorb(layer, sketch, factors, shift)
                deltas.update(delta)
            layers[layer.name] = factors
        return Generation(Factors(layers, deltas), plan, self.name, 0.0)


def absorbs(layer: LayerSpec, sketch: Sketch) -> bool:
    """Whether something behind the layer can take a constant shift of its output: its bias, or a BatchNorm's."""
    norm = sketch.follower
    return sketch.bias is not None or (norm is not None and norm.moments and norm.weight.numel() == layer.out)


def absorb(
    layer: LayerSpec, sketch: Sketch, factors: LayerFactors, shift: Tensor
) -> tuple[LayerFactors, dict[str, Tensor]]:
    """Give a constant shift of a layer's output back: through its bias, or through that of the BatchNorm behind it."""
    if sketch.bias is not None:
        return replace(factors, bias=sketch.bias + shift), {}
    norm = sketch.follower
    if norm is not None and layer.follower is not None and absorbs(layer, sketch):
        return factors, {f"{layer.follower}.bias": norm.weight / (norm.variance + norm.eps).sqrt() * shift}
    return factors, {}


ANALYTIC = {
    generator.name: generator
    for generator in (
        AnalyticGenerator("svd", None),
        AnalyticGenerator("whitened", Metric(fisher=False)),
        AnalyticGenerator("kfac", Metric()),
        AnalyticGenerator("prior", Metric(), prior=True),
    )
}
