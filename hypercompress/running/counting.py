"""Operations of one pass, the same on every device: the formulas that torch's own counter lacks.

`torch.utils.flop_counter.FlopCounterMode` knows the attention kernels of a GPU and counts the CPU's as nothing, and
likewise oneDNN's LSTM, products with one vector, sums of products, `nn.Bilinear` and torchvision's deformable
convolutions. It counts two operations for one multiply-accumulate, and so do these.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch
import torchvision  # noqa: F401  (registers its operations)
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count
from torch.utils.module_tracker import ModuleTracker

from hypercompress.alone import unfused

Shape = Sequence[int]
aten = torch.ops.aten


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    count: int = sdpa_flop_count(query, key, value)
    return count


def _matrix_vector(matrix: Shape, _vector: Shape, **_: Any) -> int:
    return 2 * math.prod(matrix)


def _added_matrix_vector(_added: Shape, matrix: Shape, _vector: Shape, **_: Any) -> int:
    return 2 * math.prod(matrix)


def _recurrent(inputs: Shape, of_inputs: Shape, of_hidden: Shape, *_: Any, **__: Any) -> int:
    """One layer in one direction: both weight matrices at every place of every sequence."""
    return 2 * math.prod(inputs[:-1]) * (math.prod(of_inputs) + math.prod(of_hidden))


def _trilinear(*shapes: Any, **_: Any) -> int:
    """The sum over a product of three tensors, each with further axes of size 1: one operation pair an element."""
    tensors = [list(shape) for shape in shapes[:3]]
    for tensor, axes in zip(tensors, shapes[3:6], strict=True):
        for axis in sorted(axes):
            tensor.insert(axis, 1)
    elements: int = math.prod(max(sizes) for sizes in zip(*tensors, strict=True))
    return 2 * elements


def _summed_products(_added: Shape, left: Shape, right: Shape, *_: Any, **__: Any) -> int:
    return 2 * math.prod(left) * right[-1]


def _distances(left: Shape, right: Shape, *_: Any, **__: Any) -> int:
    """Between all pairs of rows [*b, n, d] and [*b, m, d]."""
    return 2 * math.prod(left) * right[-2]


def _deformable(_inputs: Shape, weight: Shape, *_: Any, out_shape: Shape, **__: Any) -> int:
    """As a convolution of that weight [o, c, *kernel]; finding the places is not counted."""
    return 2 * math.prod(out_shape) * math.prod(weight[1:])


FORMULAS: Mapping[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten.mv: _matrix_vector,
    aten.dot: _matrix_vector,
    aten.vdot: _matrix_vector,
    aten.addmv: _added_matrix_vector,
    aten.mkldnn_rnn_layer: _recurrent,
    aten._trilinear: _trilinear,
    aten.addbmm: _summed_products,
    aten._cdist_forward: _distances,
    torch.ops.torchvision.deform_conv2d: _deformable,
}


class _Untracked(ModuleTracker):
    """In the place of the counter's own tracker, whose hooks on the graph refuse a model that differentiates in its
    forward (forces are derivatives of an energy): all is counted as one, and nobody asks which module it was in.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...


@contextmanager
def counting() -> Iterator[FlopCounterMode]:
    """Counts what runs inside the block; ``get_total_flops()`` is twice the multiply-accumulates.

    The fused encoder layers of torch, which are one operation and which no counter looks into, do not run there.
    """
    counter = FlopCounterMode(display=False, custom_mapping=dict(FORMULAS))
    counter.mod_tracker = _Untracked()
    with unfused(), counter:
        yield counter
