"""The closed-form generators: ``svd``, ``whitened``, ``kfac`` and, without data, ``prior``.

They ship, they are the fallback, and they are what the hypernetwork must beat.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from hypercompress.allocation import allocate
from hypercompress.factorize import Frame, Metric, by_channel, plain_frame, weighted_frame
from hypercompress.generator.lazy import OnDemand
from hypercompress.generator.prior import ROOM, curvature_bytes, prior_curvature
from hypercompress.generator.protocol import Directions, Frames, Sketches, without_data
from hypercompress.generator.restoration import absorbs, give_back
from hypercompress.running.calling import Progress
from hypercompress.specs import (
    Budget,
    Curvature,
    Factors,
    Generation,
    LayerSpec,
    ModelSpec,
    Side,
    Sketch,
)


@dataclass(frozen=True)
class AnalyticGenerator:
    """Truncation in a fixed metric, ranks by water-filling.

    Args:
        name: as on the command line.
        metric: which curvature weighs the directions; ``None``: plain SVD of the weights.
        prior: guess the curvature from norm statistics instead of reading measured ones.
        spread: how far the variance that truncation takes from an output is given back by the BatchNorm behind it, in
            [0, 1] (1: wholly). The layer-wise optimum is 0, but shrunken outputs shrink further in every layer that
            follows: half restored, the measured KL fell by 18 % over 13 networks (LOG.md, 2026-11-24).
        both: whether kernels may be factored on both sides; else on one alone, for comparison.
        known: the directions of the one teacher that it is used for, if they were found before.
        progress: called with ``"factorize"``, the number of layers done and the name of the next.
    """

    name: str
    metric: Metric | None
    prior: bool = False
    spread: float = 0.0
    both: bool = True
    known: Directions | None = field(default=None, compare=False, repr=False)
    progress: Progress | None = field(default=None, compare=False)

    @property
    def needs_data(self) -> bool:
        return self.metric is not None and not self.prior

    @property
    def nats(self) -> bool:
        """Whether half an energy is nats of KL: only with both halves of measured curvature."""
        return self.needs_data and self.metric is not None and self.metric.signal and self.metric.fisher

    def curvatures(self, spec: ModelSpec, sketches: Sketches) -> Mapping[str, Curvature]:
        """The curvature of each candidate that this generator reads: measured, or guessed."""
        if self.prior:
            layers = {layer.name: layer for layer in spec.candidates}
            return OnDemand(layers, lambda name: prior_curvature(layers[name], sketches[name]), curvature_bytes, ROOM)
        measured = {layer.name: sketches[layer.name].curvature for layer in spec.candidates}
        missing = [name for name, curvature in measured.items() if curvature is None]
        if missing:
            raise without_data(self.name)
        return {name: curvature for name, curvature in measured.items() if curvature is not None}

    def directions(
        self, spec: ModelSpec, sketches: Sketches, curvatures: Mapping[str, Curvature] | None = None
    ) -> Directions:
        """All directions of each candidate, best first in this generator's metric; pass ``curvatures`` if known."""
        if self.known is not None:
            return self.known
        outputs, inputs = {}, {}
        if curvatures is None:
            curvatures = {} if self.metric is None else self.curvatures(spec, sketches)
        for place, layer in enumerate(spec.candidates):
            name, sketch = layer.name, sketches[layer.name]
            if self.progress is not None:
                self.progress("factorize", place, name)
            dtype = sketch.weight.dtype
            if self.metric is None:
                outputs[name] = plain_frame(sketch.weight, layer.side).stored(dtype)
                if layer.projects and self.both:
                    inputs[name] = plain_frame(by_channel(sketch.weight, layer.taps), Side.INPUT).stored(dtype)
                continue
            metric, curvature = self.metric_for(layer, sketch), curvatures[name]
            outputs[name] = weighted_frame(curvature, metric).stored(dtype)
            if curvature.inputs is not None and self.both:
                inputs[name] = weighted_frame(curvature.inputs, metric).stored(dtype)
        return Directions(outputs, inputs)

    def metric_for(self, layer: LayerSpec, sketch: Sketch) -> Metric:
        """The metric of one layer: S is centred only where something behind the layer absorbs a shift of the mean."""
        assert self.metric is not None
        return replace(self.metric, centred=self.metric.centred and absorbs(layer, sketch))

    def energies(self, frames: Frames) -> dict[str, Tensor]:
        """Nats where they are known; else relative to the layer's whole, the only comparable unit left."""
        if self.nats:
            return {name: frame.total for name, frame in frames.items()}
        return {name: frame.total / frame.total.sum().clamp_min(1e-300) for name, frame in frames.items()}

    def generate(self, spec: ModelSpec, sketches: Sketches, budget: Budget) -> Generation:
        curvatures = {} if self.metric is None else self.curvatures(spec, sketches)
        known = self.directions(spec, sketches, curvatures)
        inputs = self.energies(known.inputs)
        plan = allocate(spec, self.energies(known.outputs), budget, nats=self.nats, inputs=inputs)
        layers, deltas = {}, {}
        for layer in spec.candidates:
            if layer.name not in plan.ranks:
                continue
            frame, sketch = known.outputs[layer.name].stored(torch.float64), sketches[layer.name]
            rank, inner = plan.ranks[layer.name], known.inputs.get(layer.name)
            kept = None if inner is None else _kept(inner.stored(torch.float64), plan.input_ranks.get(layer.name))
            factors = frame.factors(sketch.weight, rank, kept, layer.taps)
            if layer.name in curvatures and absorbs(layer, sketch):
                bias, changes = give_back(
                    layer, sketch, curvatures[layer.name], *frame.kept(rank), spread=self.spread, inner=kept
                )
                factors = replace(factors, bias=bias)
                deltas.update(changes)
            layers[layer.name] = factors
        return Generation(Factors(layers, deltas), plan, self.name, 0.0)


def _kept(frame: Frame, rank: int | None) -> tuple[Tensor, Tensor] | None:
    """The projection of the input channels, if the plan has one."""
    return None if rank is None else frame.kept(rank)


ANALYTIC = {
    generator.name: generator
    for generator in (
        AnalyticGenerator("svd", None),
        AnalyticGenerator("whitened", Metric(fisher=False)),
        AnalyticGenerator("kfac", Metric(), spread=0.5),
        AnalyticGenerator("prior", Metric(), prior=True),
    )
}
