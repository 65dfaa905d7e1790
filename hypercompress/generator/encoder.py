"""The transformer over all tokens of a network."""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn

from hypercompress.generator.config import HypernetConfig
from hypercompress.tokens import BANDS, BUDGET_FEATURES, LAYER_FEATURES, SKETCH_FEATURES, Tokens


class Block(nn.Module):
    """Pre-norm transformer block (Xiong et al. 2020) with an additive attention bias.

    Shape: ``[t, width]`` tokens and ``[heads, t, t]`` bias to ``[t, width]``.
    """

    def __init__(self, config: HypernetConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm_attention, self.norm_mlp = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width)
        self.out = nn.Linear(config.width, config.width)
        self.mlp = nn.Sequential(
            nn.Linear(config.width, 4 * config.width), nn.GELU(), nn.Linear(4 * config.width, config.width)
        )

    def forward(self, x: Float[Tensor, "t width"], bias: Float[Tensor, "heads t t"]) -> Float[Tensor, "t width"]:
        q, k, v = rearrange(self.qkv(self.norm_attention(x)), "t (three h c) -> three h t c", three=3, h=self.heads)
        mixed = F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=bias[None])[0]
        x = x + self.out(rearrange(mixed, "h t c -> t (h c)"))
        widened: Tensor = self.mlp(self.norm_mlp(x))
        return x + widened


class Encoder(nn.Module):
    """Embeds the tokens of one network and lets them attend to each other.

    Each head has its own learned slope on the logarithm of the distance between two layers in the forward pass (as
    ALiBi, Press et al. 2022, but on the layer order of the *teacher*); the budget token is at distance 0 from all.

    Shape: `Tokens` of n layers to ``[n, width]`` layer states and ``[n, BANDS, width]`` sketch states.
    """

    def __init__(self, config: HypernetConfig) -> None:
        super().__init__()
        self.embed_layer = nn.Linear(LAYER_FEATURES, config.width)
        self.embed_sketch = nn.Linear(SKETCH_FEATURES, config.width)
        self.embed_budget = nn.Linear(BUDGET_FEATURES, config.width)
        self.band = nn.Parameter(torch.randn(BANDS, config.width) * 0.02)
        self.slope = nn.Parameter(torch.linspace(0.0, 2.0, config.heads))
        self.own = nn.Parameter(torch.linspace(2.0, 0.0, config.heads))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, tokens: Tokens) -> tuple[Float[Tensor, "n width"], Float[Tensor, "n b width"]]:
        device = self.band.device
        layers: Tensor = self.embed_layer(tokens.layers.to(device))
        sketches = self.embed_sketch(tokens.sketches.to(device)) + self.band + layers[:, None]
        x = torch.cat(
            [self.embed_budget(tokens.budget.to(device))[None], layers, rearrange(sketches, "n b c -> (n b) c")]
        )
        bias = self.bias(tokens.order.to(device))
        for block in self.blocks:
            x = block(x, bias)
        x, n = self.norm(x), len(layers)
        return x[1 : n + 1], rearrange(x[n + 1 :], "(n b) c -> n b c", b=BANDS)

    def bias(self, order: Float[Tensor, " n"]) -> Float[Tensor, "heads t t"]:
        """Attention bias between all ``1 + n + n * BANDS`` tokens."""
        place = torch.cat([order, repeat(order, "n -> (n b)", b=BANDS)])
        distance = F.pad((place[:, None] - place).abs(), (1, 0, 1, 0))
        same = F.pad((place[:, None] == place).float(), (1, 0, 1, 0))
        return self.own[:, None, None] * same - self.slope[:, None, None] * torch.log1p(distance)
