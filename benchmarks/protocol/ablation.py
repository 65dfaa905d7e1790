"""Hypernetworks with a part taken away, to see what it is worth."""

from collections.abc import Collection
from dataclasses import fields, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hypercompress.generator import HypernetGenerator, Hypernetwork
from hypercompress.generator.heads import Outputs
from hypercompress.generator.protocol import Sketches
from hypercompress.specs import Budget, Generation, ModelSpec
from hypercompress.tokens import Tokens

CHANNELS = "channels"  # the curvature without data, which is no field of `Outputs`
GROUPS = (*(field.name for field in fields(Outputs) if field.name != "states"), CHANNELS)
ALLOCATION = ("weight", "exponent", "inner")  # what bends energies, and nothing else


class AblatedHypernetwork(Hypernetwork):
    """A hypernetwork that does not say something, or does not see anything. It shares the parts of the whole one.

    Args:
        network: the whole one.
        silenced: groups of outputs that are 0, of `GROUPS`.
        noise: seed of the noise that replaces tokens; ``None``: they are read.
    """

    def __init__(self, network: Hypernetwork, silenced: Collection[str] = (), noise: int | None = None) -> None:
        nn.Module.__init__(self)
        unknown = sorted(set(silenced) - set(GROUPS))
        if unknown:
            raise ValueError(f"received output groups {', '.join(unknown)}; expected some of {', '.join(GROUPS)}")
        self.config, self.encoder, self.heads = network.config, network.encoder, network.heads
        self.silenced, self.noise = frozenset(silenced), noise

    def forward(self, tokens: Tokens, measured: bool) -> Outputs:
        if self.noise is not None:
            tokens = noisy(tokens, self.noise)
        outputs = super().forward(tokens, measured)
        silenced = {name: torch.zeros_like(getattr(outputs, name)) for name in self.silenced - {CHANNELS}}
        return replace(outputs, **silenced)

    def channels(self, features: Float[Tensor, "m f_channel"], state: Float[Tensor, " width"]) -> Float[Tensor, " m"]:
        if CHANNELS in self.silenced:
            return features.new_zeros(len(features))
        return super().channels(features if self.noise is None else like(features, self.noise), state)


def noisy(tokens: Tokens, seed: int) -> Tokens:
    """Noise in the place of every feature; the number of layers and their order remain."""
    layers, sketches, budget = (
        like(part, seed + place) for place, part in enumerate((tokens.layers, tokens.sketches, tokens.budget))
    )
    return Tokens(layers, sketches, budget, tokens.order)


def like(values: Tensor, seed: int) -> Tensor:
    """Gaussian noise of the shape, the mean and the deviation of ``values`` as a whole."""
    noise = torch.randn(values.shape, generator=torch.Generator().manual_seed(seed)).to(values)
    return values.mean() + values.std(correction=0) * noise


class Unguarded:
    """A hypernetwork at full strength that the guard takes for an analytic generator, and so lets pass."""

    def __init__(self, generator: HypernetGenerator) -> None:
        self.generator, self.name = generator, generator.name

    def generate(self, spec: ModelSpec, sketches: Sketches, budget: Budget) -> Generation:
        return self.generator.generate(spec, sketches, budget)
