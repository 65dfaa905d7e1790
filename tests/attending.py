"""Networks with attention of their own."""

import torch
from torch import Tensor, nn

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "out_proj")


class Pooled(nn.Module):
    """Attention of its own between two linear layers: [n, l, 16] to logits [n, 5]."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.attention = nn.Linear(16, 16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        output: Tensor = self.head((x + self.attention(x, x, x)[0]).mean(1))
        return output


def randomised(model: nn.Module) -> nn.Module:
    """torch starts some biases at zero, and all layers of an encoder alike."""
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return model.eval()


class Special(nn.MultiheadAttention):
    """May compute anything."""


def subclass(model: Pooled) -> None:
    model.attention = Special(16, 2, batch_first=True)
