"""A fused projection to queries, keys and values, taken apart into three layers, so that each has a rank of its own.

timm computes the three with one `torch.nn.Linear` named ``qkv`` [3 e, d]. Factored as one block, all three share one
reduction; apart, queries and keys get by with far fewer directions than values. At equal size the KL of a small ViT
falls by an eighth to a half (LOG.md).
"""

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

NAME = "qkv"
# timm's attention of BEiT, EVA and Swin v2 reads the projection's weight itself, to give it a bias of three parts,
# unless this attribute of it is true: then it calls the layer and adds the bias afterwards.
SWITCH = "qkv_bias_separate"


class SplitProjection(nn.Module):
    """Three linear layers ``q``, ``k`` and ``v`` on one input, their outputs one after the other.

    Args:
        fused: the layer to take the weights from; its outputs are divided by three.
        copies: take copies; else views, for a model that is read only.

    Shape: as `torch.nn.Linear`: ``[..., d]`` to ``[..., 3 e]``.
    """

    switched = False  # whether the module that holds it was told to call it
    __jit_unused_properties__ = ("weight", "bias")  # as `LowRank` has it

    def __init__(self, fused: nn.Linear, *, copies: bool = True) -> None:
        super().__init__()
        self.in_features, self.out_features = fused.in_features, fused.out_features
        bias: Tensor | None = fused.bias
        biases = (None, None, None) if bias is None else bias.chunk(3)
        self.q, self.k, self.v = (
            linear_of(own(weight, fused.weight, copies=copies), own(part, bias, copies=copies))
            for weight, part in zip(fused.weight.chunk(3), biases, strict=True)
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

    def switch(self, holder: nn.Module) -> None:
        """Have the attention layer that holds it call it, if that would read its weight instead."""
        if getattr(holder, SWITCH, True) is False:
            setattr(holder, SWITCH, True)
            self.switched = True

    def switch_back(self, holder: nn.Module) -> None:
        """Undo `switch`."""
        if self.switched:
            setattr(holder, SWITCH, False)
            self.switched = False

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.q(x), self.k(x), self.v(x)], -1)

    def pack(self) -> nn.Linear:
        """The fused layer again, with copies of the weights; its parts must be `torch.nn.Linear`."""
        parts = (self.q, self.k, self.v)
        biases: list[Any] = [layer.bias for layer in parts]
        bias = None if biases[0] is None else joined(biases)
        return linear_of(joined([layer.weight for layer in parts]), bias).train(self.training)


@overload
def own(tensor: Tensor, like: Tensor | None = None, *, copies: bool = True) -> nn.Parameter: ...
@overload
def own(tensor: Tensor | None, like: Tensor | None = None, *, copies: bool = True) -> nn.Parameter | None: ...
def own(tensor: Tensor | None, like: Tensor | None = None, *, copies: bool = True) -> nn.Parameter | None:
    """A copy (or the same memory) as a parameter, frozen if ``like`` (else the tensor itself) is."""
    if tensor is None:
        return None
    data = tensor.detach().clone() if copies else tensor.detach()
    return nn.Parameter(data, (tensor if like is None else like).requires_grad)


def joined(tensors: Sequence[Tensor]) -> nn.Parameter:
    """One below the other as a parameter, frozen if all of them are."""
    return nn.Parameter(torch.cat([t.detach() for t in tensors]), any(t.requires_grad for t in tensors))


def linear_of(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    """The layer of these very parameters."""
    layer: Any = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    layer.weight, layer.bias = weight, bias
    linear: nn.Linear = layer
    return linear
