"""What a model gives where torch runs its transformer layers fused, which those of a student never are."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from hypercompress.alone import ALONE
from hypercompress.errors import warn
from hypercompress.packed.attention import UnpackedAttention
from hypercompress.packed.unpacking import unpacked_layers
from hypercompress.running.calling import ForwardFn, evaluating, restoring_buffers, switching

FUSED = (nn.TransformerEncoder, nn.TransformerEncoderLayer)
ABOUT_TORCH = "The PyTorch API of nested tensors"  # torch says once that it may change, wherever they are used


def warn_of_fusion(model: nn.Module, unpacked: nn.Module, batch: Any, forward_fn: ForwardFn) -> None:
    """Say so where the fused layers of torch, which evaluation without gradients takes, give other outputs than the
    same layers one after another: they leave zeros at the padding. A student is compared with the latter.

    Args:
        model: as it was given.
        unpacked: the same as it is factored; if no attention is unpacked in it, its students run as the model does.
        batch: samples that were held out.
    """
    fused = any(isinstance(module, FUSED) for module in model.modules())
    if not fused or not unpacked_layers(unpacked, UnpackedAttention) or not torch.backends.mha.get_fastpath_enabled():
        return
    with torch.no_grad():
        with evaluating(model):
            stepwise = forward_fn(model, batch)
        with ALONE, warnings.catch_warnings(), switching(model), restoring_buffers(model):
            warnings.filterwarnings("ignore", message=ABOUT_TORCH)
            gap = _gap(forward_fn(model, batch), stepwise)
    if gap > torch.finfo(stepwise.dtype).eps ** 0.5:
        warn(
            f"received a model whose outputs depend on its padding: they differ by {gap:.2g} of the largest between "
            "torch's fused layers and the same run one by one, as a student runs and is compared; expected outputs "
            "that do not; mask the padding in the model's forward"
        )


def _gap(fused: Tensor, stepwise: Tensor) -> float:
    """The largest difference as a share of the largest value."""
    largest = stepwise.abs().max().clamp_min(torch.finfo(stepwise.dtype).tiny)
    return float((fused - stepwise).abs().max() / largest)
