"""The transfer network: from what a support set says of a model to changes of its norms, biases and cores.

The blocks of the compression hypernetwork (`generator/encoder.py`) over one token for each site and one for the task;
then a small network for each channel, conditioned on the state of its site (FiLM-like generation as in CNAPs, Requeima
et al. 2019). The last layers start at zero, so before training nothing changes. A permutation of the channels permutes
what is said of them, and any number of channels, sites, classes and images will do.

Shape letters: ``m`` channels of all sites together; ``s`` sites; ``k`` terms of a core's outer product.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hypercompress.generator.config import HypernetConfig
from hypercompress.generator.encoder import Block
from hypercompress.transfer.config import TransferConfig
from hypercompress.transfer.features import CHANNEL_FEATURES, SITE_FEATURES, TASK_FEATURES, Task


@dataclass(frozen=True)
class Changes:
    """What is changed, channel by channel; all zero: nothing.

    Args:
        scale: log change of a norm's scale, or the gain of a core's direction less 1.
        shift: of a norm, in units of its scale; of a bias, in deviations of the channel.
        left, right: outer product of a core, ``left right^T``.
        mix: how far the norm of each site takes on the support set's moments.
    """

    scale: Float[Tensor, " m"]
    shift: Float[Tensor, " m"]
    left: Float[Tensor, "m k"]
    right: Float[Tensor, "m k"]
    mix: Float[Tensor, " s"]


class TransferNetwork(nn.Module):
    """Reads a `Task`, says `Changes`.

    Args:
        config: shape and bounds.
    """

    def __init__(self, config: TransferConfig | None = None) -> None:
        super().__init__()
        self.config = c = config or TransferConfig()
        self.embed_site = nn.Linear(SITE_FEATURES, c.width)
        self.embed_task = nn.Linear(TASK_FEATURES, c.width)
        self.slope = nn.Parameter(torch.linspace(0.0, 2.0, c.heads))
        shape = HypernetConfig(width=c.width, depth=c.depth, heads=c.heads)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(c.depth))
        self.norm = nn.LayerNorm(c.width)
        self.of_channel, self.of_site = nn.Linear(CHANNEL_FEATURES, c.width), nn.Linear(c.width, c.width)
        self.hidden = nn.Linear(c.width, c.width)
        self.changes = nn.Linear(c.width, 2 + c.outer)
        self.right = nn.Linear(c.width, c.outer)
        self.mix = nn.Linear(c.width, 1)
        for last in (self.changes, self.mix):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, task: Task) -> Changes:
        c = self.config
        x = torch.cat([self.embed_task(task.task)[None], self.embed_site(task.sites)])
        bias = self.bias(len(task.sites))
        for block in self.blocks:
            x = block(x, bias)
        states = self.norm(x)[1:]
        channels = self.of_channel(task.channels) + self.of_site(states)[task.site]
        channels = F.gelu(self.hidden(F.gelu(channels)))
        said = self.changes(channels).tanh()
        return Changes(
            scale=said[:, 0] * c.scale_bound,
            shift=said[:, 1] * c.shift_bound,
            left=said[:, 2:] * c.core_bound * task.sign[:, None],
            right=self.right(channels).tanh() * task.sign[:, None],
            mix=self.mix(states).squeeze(1).tanh() * c.mix_bound,
        )

    def bias(self, sites: int) -> Float[Tensor, "heads t t"]:
        """Attention bias: each head has its slope on the logarithm of the distance; the task is at distance 0."""
        place = torch.arange(sites, device=self.slope.device, dtype=self.slope.dtype)
        distance = F.pad((place[:, None] - place).abs(), (1, 0, 1, 0))
        return -self.slope[:, None, None] * torch.log1p(distance)
