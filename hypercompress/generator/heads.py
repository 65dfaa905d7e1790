"""What the hypernetwork says: six bounded numbers a layer, a gain a band, and a curvature a channel without data.

Every last layer starts at zero, so before training each output is exactly 0, which is the analytic generator.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hypercompress.generator.config import HypernetConfig
from hypercompress.tokens import CHANNEL_FEATURES


@dataclass(frozen=True)
class Outputs:
    """Corrections to the analytic generator; all zero: none.

    Args:
        weight: log-weight of each layer in the allocation.
        exponent: bends each layer's spectrum in the allocation: ``s^2 (s^2 / s_max^2)^exponent``.
        shift: relative change of the bias correction.
        spread: how far the variance that truncation took is given back by the norm behind (1: wholly).
        rotation: share of the plain-weight metric mixed into the directions, to first order.
        inner: log-weight of each layer's input channels in the allocation, beside that of the layer.
        gain: relative change of the kept directions, by band.
        states: layer states, for `Heads.channels`.
    """

    weight: Float[Tensor, " n"]
    exponent: Float[Tensor, " n"]
    shift: Float[Tensor, " n"]
    spread: Float[Tensor, " n"]
    rotation: Float[Tensor, " n"]
    inner: Float[Tensor, " n"]
    gain: Float[Tensor, "n b"]
    states: Float[Tensor, "n width"]

    def scaled(self, strength: float) -> "Outputs":
        """All corrections times ``strength`` in [0, 1]; 0 is the analytic generator."""
        return Outputs(
            self.weight * strength,
            self.exponent * strength,
            self.shift * strength,
            self.spread * strength,
            self.rotation * strength,
            self.inner * strength,
            self.gain * strength,
            self.states,
        )


class Heads(nn.Module):
    """Reads the encoder's states. Bounds come from the config through ``tanh``."""

    def __init__(self, config: HypernetConfig) -> None:
        super().__init__()
        self.config = config
        self.layer = nn.Linear(config.width, 6)
        self.band = nn.Linear(config.width, 1)
        self.channel = nn.Sequential(
            nn.Linear(CHANNEL_FEATURES + config.width, config.width), nn.GELU(), nn.Linear(config.width, 1)
        )
        for last in (self.layer, self.band, self.channel[-1]):
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(
        self, layers: Float[Tensor, "n width"], sketches: Float[Tensor, "n b width"], measured: bool
    ) -> Outputs:
        c = self.config
        weight, exponent, shift, spread, rotation, inner = self.layer(layers).tanh().unbind(1)
        bound = c.weight_bound if measured else c.free_weight_bound
        return Outputs(
            weight=weight * bound,
            exponent=exponent * c.exponent_bound,
            shift=shift,
            spread=spread,
            rotation=rotation * c.rotation_bound,
            inner=inner * c.inner_bound,
            gain=self.band(sketches).squeeze(-1).tanh() * c.gain_bound,
            states=layers,
        )

    def channels(self, features: Float[Tensor, "m f_channel"], state: Float[Tensor, " width"]) -> Float[Tensor, " m"]:
        """Log change of the guessed curvature of each channel of one layer's smaller side."""
        joined = torch.cat([features, state.expand(len(features), -1)], dim=1)
        change: Tensor = self.channel(joined).squeeze(-1).tanh() * self.config.curvature_bound
        return change
