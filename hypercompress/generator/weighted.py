"""`kfac` with its allocation bent: some layers count for more, and others for less, than the additive model says."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from torch import Tensor

from hypercompress.allocation import predicted_kl
from hypercompress.generator.analytic import AnalyticGenerator
from hypercompress.generator.protocol import Frames, Sketches
from hypercompress.specs import Budget, Generation, ModelSpec


@dataclass(frozen=True)
class WeightedKfac(AnalyticGenerator):
    """`kfac` whose allocation sees the energies of each layer times ``exp(weight)``; without weights it is `kfac`.

    Args:
        weights: by layer; absent: 0.
    """

    weights: Mapping[str, float] = field(default_factory=dict)

    def energies(self, frames: Frames) -> dict[str, Tensor]:
        found = super().energies(frames)
        return {name: energy * math.exp(self.weights.get(name, 0.0)) for name, energy in found.items()}

    def generate(self, spec: ModelSpec, sketches: Sketches, budget: Budget) -> Generation:
        if self.known is None:
            return replace(self, known=self.directions(spec, sketches)).generate(spec, sketches, budget)
        generation = super().generate(spec, sketches, budget)
        if not any(self.weights.values()):
            return generation
        # Ranks are chosen by the bent energies; what is predicted of them is not bent.
        outputs, inputs = (super(WeightedKfac, self).energies(f) for f in (self.known.outputs, self.known.inputs))
        predicted = predicted_kl(spec, outputs, generation.plan, inputs)
        return replace(generation, plan=replace(generation.plan, predicted_kl=predicted))


def weighted(generator: AnalyticGenerator, weights: Mapping[str, float], name: str | None = None) -> WeightedKfac:
    """A generator in nats with its allocation bent, further if it was bent before.

    Args:
        weights: by layer.
        name: for the report; ``None``: as before.
    """
    before = generator.weights if isinstance(generator, WeightedKfac) else {}
    total = {n: before.get(n, 0.0) + weights.get(n, 0.0) for n in {*before, *weights}}
    return WeightedKfac(
        name or generator.name,
        generator.metric,
        spread=generator.spread,
        both=generator.both,
        known=generator.known,
        progress=generator.progress,
        weights=total,
    )


def by_depth(spec: ModelSpec, tilt: float) -> dict[str, float]:
    """Weights that rise by ``tilt`` from the first candidate to the last, in the order in which they run."""
    names = [layer.name for layer in spec.candidates]
    return {name: tilt * (place / max(1, len(names) - 1) - 0.5) for place, name in enumerate(names)}
