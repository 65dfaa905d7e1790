"""Which operations of a forward pass nobody counts, and which of these need no count.

An operation that neither torch's counter nor `hypercompress/running/counting.py` knows costs nothing in both, so the
two agree whatever it does. Here each must be known to be no product: by what torch says of it (elementwise, a
reduction, a view), or by name. A sum of elementwise products, written as these two, is none to either counter; this
finds no such thing.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from hypercompress.running.counting import FORMULAS, counting

aten = torch.ops.aten
TAGS = {torch.Tag.pointwise, torch.Tag.reduction, torch.Tag.inplace_view}
NO_PRODUCTS = {
    "makes a tensor": {aten.arange, aten.empty, aten.ones, aten.zeros},
    "moves elements": {
        aten._local_scalar_dense,
        aten._to_copy,
        aten._unsafe_index,
        aten._unsafe_view,
        aten.cat,
        aten.constant_pad_nd,
        aten.copy_,
        aten.flip,
        aten.im2col,
        aten.index,
        aten.reflection_pad2d,
        aten.repeat,
        aten.roll,
        aten.scatter_,
        aten.stack,
    },
    "adds or compares neighbours": {
        aten._adaptive_avg_pool2d,
        aten.avg_pool2d,
        aten.col2im,
        aten.cumsum,
        aten.max_pool2d_with_indices,
    },
    "normalises": {
        aten._native_batch_norm_legit,
        aten._native_batch_norm_legit_no_training,
        aten._safe_softmax,
        aten._softmax,
        aten.native_group_norm,
        aten.native_layer_norm,
    },
    "elementwise, without the tag": {aten.hardswish, aten.hardswish_},
    "resizes, with weights that are the same for all channels": {
        aten.upsample_bicubic2d,
        aten.upsample_bilinear2d,
        aten.upsample_linear1d,
    },
}
ALLOWED = frozenset[Any]().union(*NO_PRODUCTS.values())


class Recorder(TorchDispatchMode):
    """Every operation that is run in it. Entered before a counter, it sees what the counter leaves whole."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[OpOverload] = set()

    def __torch_dispatch__(
        self, func: OpOverload, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.seen.add(func)
        return func(*args, **(kwargs or {}))


def operations(model: nn.Module, images: Tensor) -> set[OpOverload]:
    """The operations of a pass of inference, counted as `inspect` counts it."""
    with torch.no_grad(), Recorder() as recorder, counting():
        model(images)
    return recorder.seen


def counted(operation: OpOverload) -> bool:
    return operation.overloadpacket in flop_registry or operation.overloadpacket in FORMULAS


def tagged(operation: OpOverload) -> bool:
    """Whether torch itself says that it is elementwise, a reduction or a view."""
    return operation.is_view or not TAGS.isdisjoint(operation.tags)


def unexplained(operation: OpOverload) -> bool:
    """Whether it is in no count, and nobody says that it is no product."""
    return not (counted(operation) or tagged(operation) or operation.overloadpacket in ALLOWED)
