"""A fused projection to queries, keys and values, taken apart into three layers, so that each has a rank of its own.

timm computes the three with one `torch.nn.Linear` named ``qkv`` [3 e, d]. Factored as one block, all three share one
reduction; apart, queries and keys get by with far fewer directions than values. At equal size the KL of a small ViT
falls by a fifth to a half (LOG.md).
"""

from typing import Any

import torch
from torch import Tensor, nn

NAME = "qkv"


class SplitProjection(nn.Module):
    """Three linear layers ``q``, ``k`` and ``v`` on one input, their outputs one after the other.

    Args:
        fused: the layer to take copies of the weights from; its outputs are divided by three.

    Shape: as `torch.nn.Linear`: ``[..., d]`` to ``[..., 3 e]``.
    """

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = fused.in_features, fused.out_features
        bias: Tensor | None = fused.bias
        biases = (None, None, None) if bias is None else bias.chunk(3)
        self.q, self.k, self.v = (
            _linear(part, own, fused) for part, own in zip(fused.weight.chunk(3), biases, strict=True)
        )
        self.train(fused.training)

    @property
    def weight(self) -> Tensor:
        """What the fused layer has under this name, for code that looks at it."""
        return torch.cat([self.q.weight, self.k.weight, self.v.weight])

    @property
    def bias(self) -> Tensor | None:
        """What the fused layer has under this name, for code that looks at it."""
        biases: list[Any] = [self.q.bias, self.k.bias, self.v.bias]
        return None if biases[0] is None else torch.cat(biases)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.q(x), self.k(x), self.v(x)], -1)

    @torch.no_grad()
    def pack(self) -> nn.Linear:
        """The fused layer again; frozen if all three are."""
        bias = self.bias
        fused = nn.Linear(self.in_features, self.out_features, bias is not None, device="meta")
        learns = any(parameter.requires_grad for parameter in self.parameters())
        fused.weight = nn.Parameter(self.weight, learns)
        if bias is not None:
            fused.bias = nn.Parameter(bias, learns)
        return fused.train(self.training)


def _linear(weight: Tensor, bias: Tensor | None, fused: nn.Linear) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), fused.weight.requires_grad)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), fused.bias.requires_grad)
    return layer
