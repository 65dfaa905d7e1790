"""`torch.nn.MultiheadAttention` with its projections as layers of their own, so that each can be factored.

torch keeps the projections of queries, keys and values in one parameter ``in_proj_weight`` [3 e, e], and reads the
weight of the fourth, ``out_proj``, without calling it. Here all four are `torch.nn.Linear`, which hooks see and a
low-rank layer can replace. Parameters and multiply-accumulates are the same.

Shape letters: ``n`` samples, ``l`` queries, ``s`` keys, ``h`` heads, ``c`` channels of a head, ``e = h c``.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypercompress.packed.projection import joined, linear_of, own

SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")  # torch's own, where keys or values have other widths


class UnpackedAttention(nn.Module):
    """An attention layer with the arguments and the results of `torch.nn.MultiheadAttention`.

    Args:
        packed: the layer to take the options from, and copies of the weights.

    Shape: as `torch.nn.MultiheadAttention`; nested tensors are not taken.
    """

    # torch's transformer layers look at this before they run as one fused kernel, which would call no layer in here.
    _qkv_same_embed_dim = False
    # For torch.jit.script as `LowRank` has it; of what it compiles it reads the annotations, and knows no jaxtyping: of
    # the methods below the docstrings have the shapes.
    __jit_unused_properties__ = ("in_proj_weight", "in_proj_bias", *SEPARATE)

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        super().__init__()
        self.embed_dim, self.kdim, self.vdim = packed.embed_dim, packed.kdim, packed.vdim
        self.num_heads, self.head_dim = packed.num_heads, packed.head_dim
        self.dropout, self.batch_first, self.add_zero_attn = packed.dropout, packed.batch_first, packed.add_zero_attn
        whole: Tensor | None = packed.in_proj_weight
        bias: Tensor | None = packed.in_proj_bias
        weights = [getattr(packed, name) for name in SEPARATE] if whole is None else whole.chunk(3)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        self.q_proj, self.k_proj, self.v_proj = (
            linear_of(own(weight, whole), own(part, bias)) for weight, part in zip(weights, biases, strict=True)
        )
        self.out_proj = linear_of(own(packed.out_proj.weight), own(packed.out_proj.bias))
        self.bias_k, self.bias_v = own(packed.bias_k), own(packed.bias_v)
        self.train(packed.training)

    @property
    def in_proj_weight(self) -> Tensor | None:
        """What torch has under this name [3 e, e], for code that looks at it."""
        if not self.kdim == self.vdim == self.embed_dim:
            return None
        return torch.cat([self.q_proj.weight, self.k_proj.weight, self.v_proj.weight])

    @property
    def in_proj_bias(self) -> Tensor | None:
        """What torch has under this name [3 e], for code that looks at it."""
        biases: list[Any] = [self.q_proj.bias, self.k_proj.bias, self.v_proj.bias]
        return None if biases[0] is None else torch.cat(biases)

    @property
    def q_proj_weight(self) -> Tensor | None:
        """What torch has under this name where keys or values have other widths, for code that looks at it."""
        return self._separate(self.q_proj)

    @property
    def k_proj_weight(self) -> Tensor | None:
        """As `q_proj_weight`."""
        return self._separate(self.k_proj)

    @property
    def v_proj_weight(self) -> Tensor | None:
        """As `q_proj_weight`."""
        return self._separate(self.v_proj)

    def _separate(self, projection: Any) -> Tensor | None:
        weight: Tensor = projection.weight
        return None if self.kdim == self.vdim == self.embed_dim else weight

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See `torch.nn.MultiheadAttention` for the arguments, their shapes and what is returned."""
        if is_causal and attn_mask is None:
            raise RuntimeError("received is_causal without attn_mask; expected the mask that it describes; pass both")
        # As torch does: where nothing else needs the mask itself, the hint stands in for it.
        causal = is_causal and key_padding_mask is None and not need_weights
        mask = self._mask(None if causal else attn_mask, key_padding_mask, query.dtype)
        q = self._heads(self.q_proj(query))
        k = self._extended(self._heads(self.k_proj(key)), self.bias_k)
        v = self._extended(self._heads(self.v_proj(value)), self.bias_v)
        weights: Tensor | None = None
        if need_weights:
            weights = self._weights(q, k, mask)
            mixed = weights @ v
        else:
            dropout = self.dropout if self.training else 0.0
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout, causal)
        mixed = mixed.transpose(1, 2).flatten(2)  # [n, l, e]
        if query.ndim == 2:
            mixed = mixed[0]
        elif not self.batch_first:
            mixed = mixed.transpose(0, 1)
        output: Tensor = self.out_proj(mixed)
        if weights is None:
            return output, None
        weights = weights.mean(1) if average_attn_weights else weights
        return output, weights[0] if query.ndim == 2 else weights

    def _heads(self, x: Tensor) -> Tensor:
        """What a projection gives, head by head [n, h, l, c]; an input [l, e] without an axis of samples is one."""
        x = x.unflatten(-1, (self.num_heads, self.head_dim))
        if x.ndim == 3:
            x = x[None]
        elif not self.batch_first:
            x = x.transpose(0, 1)
        return x.transpose(1, 2)

    def _extended(self, x: Tensor, learned: Tensor | None) -> Tensor:
        """Keys or values [n, h, s, c], behind them a learned one [1, 1, e] and one of zeros, if the layer has such."""
        if learned is not None:
            last = learned.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            x = torch.cat([x, last.expand(len(x), -1, -1, -1)], 2)
        return F.pad(x, (0, 0, 0, 1)) if self.add_zero_attn else x

    def _mask(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Both masks as one [n or 1, h or 1, l or 1, keys] that is added to the scores; what `_extended` puts behind
        the keys is always seen.
        """
        masks = []
        if attn_mask is not None:  # one for all [l, s], or for each sample and head its own [n h, l, s]
            shared = attn_mask.ndim == 2
            masks.append(attn_mask[None, None] if shared else attn_mask.unflatten(0, (-1, self.num_heads)))
        if key_padding_mask is not None:  # [n, s], or [s] without a batch axis
            masks.append(key_padding_mask.reshape(-1, 1, 1, key_padding_mask.shape[-1]))
        if not masks:
            return None
        merged = _added(masks[0], dtype) if len(masks) == 1 else _added(masks[0], dtype) + _added(masks[1], dtype)
        more = (self.bias_k is not None) + self.add_zero_attn
        return F.pad(merged, (0, more)) if more else merged

    def _weights(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        """How much of each value goes into each output [n, h, l, s]: after the dropout, as torch returns them."""
        scores = (q * math.sqrt(1.0 / self.head_dim)) @ k.transpose(-2, -1)
        scores = scores if mask is None else scores + mask
        return F.dropout(scores.softmax(-1), self.dropout, self.training)

    def pack(self) -> nn.MultiheadAttention:
        """The layer in torch's own form, with copies of the weights; its projections must be `torch.nn.Linear`."""
        packed = nn.MultiheadAttention(
            self.embed_dim,
            self.num_heads,
            self.dropout,
            add_zero_attn=self.add_zero_attn,
            kdim=self.kdim,
            vdim=self.vdim,
            batch_first=self.batch_first,
            device="meta",  # no memory, no random numbers: every parameter is replaced
        )
        layers: list[Any] = [self.q_proj, self.k_proj, self.v_proj]
        weights = [layer.weight for layer in layers]
        parts: dict[str, nn.Parameter | None] = {"bias_k": own(self.bias_k), "bias_v": own(self.bias_v)}
        parts["in_proj_bias"] = None if layers[0].bias is None else joined([layer.bias for layer in layers])
        if self.kdim == self.vdim == self.embed_dim:
            parts["in_proj_weight"] = joined(weights)
        else:
            parts |= {name: own(weight) for name, weight in zip(SEPARATE, weights, strict=True)}
        for name, parameter in parts.items():
            setattr(packed, name, parameter)
        out: Any = packed.out_proj
        out.weight, out.bias = own(self.out_proj.weight), own(self.out_proj.bias)
        return packed.train(self.training)


def _added(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask to add to scores; of a boolean one, true hides a key."""
    return mask if mask.is_floating_point() else torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -math.inf)
