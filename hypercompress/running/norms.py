"""BatchNorm's running moments in a student, whose layers give other outputs than the teacher's: estimated anew, or made
those that its inputs have, the function as it was.
"""

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.norm_act import BatchNormAct2d, SyncBatchNormAct
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from hypercompress.errors import DataError
from hypercompress.running.batches import resized
from hypercompress.running.calling import ForwardFn, call_model, evaluating, first_argument
from hypercompress.running.hooks import hooked
from hypercompress.running.nested import batch_size, flat
from hypercompress.running.tracing import LOOKS, trace_pass

# Of norms that compute ``g / s (x - m) + b``, and with it what they do. A subclass with its own forward may use its
# parameters in another way (``1 + g``, no ``s``).
FORWARDS = (nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward, BatchNormAct2d.forward, SyncBatchNormAct.forward)
OWN = (("weight", "_parameters"), ("bias", "_parameters"), ("running_mean", "_buffers"), ("running_var", "_buffers"))


def remembering_norms(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorms that keep running moments."""
    return [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


@torch.no_grad()
def reestimate_norms(model: nn.Module, batches: Iterable[Any], forward_fn: ForwardFn | None = None) -> None:
    """Replace the running moments of every BatchNorm of ``model`` by those over ``batches``, in place.

    Helps where the batches resemble the training data, and hurts where they are few and unlike it: a caller keeps the
    model as it was to go back to. A batch of a single sample has no variance and is left out.

    Raises:
        DataError: no batch of at least two samples.
    """
    batches = [batch for batch in batches if batch_size(batch) > 1]
    if not batches:
        raise DataError(
            "received no batch of two or more samples; expected one to estimate a variance from; add images"
        )
    norms = remembering_norms(model)
    momenta = [norm.momentum for norm in norms]
    handles = [norm.register_forward_pre_hook(_Averaging(), with_kwargs=True) for norm in norms]
    try:
        with hooked(handles), evaluating(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.train()
            for batch in batches:
                (forward_fn or call_model)(model, batch)
            moments = [buffer.clone() for norm in norms for buffer in norm.buffers()]
        for buffer, value in zip((b for norm in norms for b in norm.buffers()), moments, strict=True):
            buffer.copy_(value)  # `evaluating` has put back what was there before
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


class _Averaging:
    """Before each call of a norm: its momentum makes its running moments the mean so far, each sample weighing alike.

    torch's own cumulative average lets a last batch of two weigh as much as one of 256.
    """

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, norm: _BatchNorm, args: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        count = len(first_argument(args, named))
        self.seen += count
        norm.momentum = count / max(1, self.seen)


@torch.no_grad()
def rebase_norms(model: nn.Module, batches: Iterable[Any], forward_fn: ForwardFn | None = None) -> None:
    """Make the running moments of every BatchNorm those of its own inputs over ``batches``, and its scale and shift
    such that in evaluation the model computes what it did, to rounding; in place.

    ``g / s (x - m) + b  =  (g s'/s) / s' (x - m') + b + g / s (m' - m)``, with ``s^2 = variance + eps``.

    A refitted student was fitted to the teacher's moments, and its layers give less variance than that. In training
    mode a norm takes the moments of the batch instead, which undoes the fit: the first steps would have to find it
    again (LOG.md, 2026-11-27). Rebased, it computes nearly the same in either mode. As they are stay norms with a
    forward that is neither torch's nor timm's, without scale or shift, or whose scale, shift or moments are computed
    anew in each pass, shared, or read by others; those that the model runs by the moments of the batch; and channels
    that are not finite.
    """
    batches = list(batches)
    held = Counter(id(value) for module in model.modules() for value in _held(module))
    sums = {
        norm: _Sums()
        for norm in remembering_norms(model)
        if _plain(norm) and all(held[id(value)] == 1 for part in norm.modules() for value in _held(part))
    }
    if not sums or not batches:
        return
    reads = _MomentReads(sums)
    read = trace_pass(model, resized(batches[0], 2), reads.watched(forward_fn or call_model)).readers
    others = {model.get_submodule(path.rpartition(".")[0]) for path in read} | reads.read
    sums = {norm: found for norm, found in sums.items() if norm not in others}
    handles = [norm.register_forward_pre_hook(found, with_kwargs=True) for norm, found in sums.items()]
    with hooked(handles), evaluating(model):
        for batch in batches:
            (forward_fn or call_model)(model, batch)
    for norm, found in sums.items():
        if found.count and not found.by_batch:
            _rebase(norm, *found.moments())


def _held(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers of the module itself."""
    return [value for value in (*module._parameters.values(), *module._buffers.values()) if value is not None]


def _plain(norm: nn.Module) -> bool:
    """Whether it computes with its scale, shift and moments what the formula says, and holds them itself: what it
    computes anew in each pass (`torch.nn.utils.parametrize`, pruning) is nothing to write into.
    """
    known = type(norm).forward in FORWARDS and "forward" not in vars(norm)
    return known and all(getattr(norm, place).get(name) is not None for name, place in OWN)


class _MomentReads(TorchFunctionMode):
    """Notes the norms whose moments somebody else reads, which `trace_pass` says of parameters."""

    def __init__(self, norms: Iterable[nn.Module]) -> None:
        super().__init__()
        self.owners = {id(moment): norm for norm in norms for moment in norm.buffers(recurse=False)}
        self.read: set[nn.Module] = set()

    def watched(self, forward_fn: ForwardFn) -> ForwardFn:
        """``forward_fn``, watched in each call."""

        def run(model: nn.Module, batch: Any) -> Any:
            with self:
                return forward_fn(model, batch)

        return run

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result, name = func(*args, **(kwargs or {})), getattr(func, "__name__", "")
        if name in LOOKS or (name == "__get__" and not isinstance(result, Tensor)):
            return result
        given = {id(value) for value in flat((args, kwargs or {}))}
        for norm in (self.owners[key] for key in given if key in self.owners):
            # The norm itself passes its scale along. Whoever else does that reads a parameter.
            if func is not F.batch_norm or id(norm.weight) not in given:
                self.read.add(norm)
        return result


class _Sums:
    """Before each call of a norm: what the moments of all its inputs are made of."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, torch.zeros(()), torch.zeros(())
        self.by_batch = False  # whether it ran in training mode, which the running moments say nothing of

    def __call__(self, norm: nn.Module, args: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        x = first_argument(args, named)
        self.by_batch |= norm.training
        if not x.numel():
            return
        others = [axis for axis in range(x.ndim) if axis != 1]
        # Of each call in single precision, which takes no copy; together in double.
        variance, mean = (value.double() for value in torch.var_mean(x.float(), others, correction=0))
        count = x.numel() // x.shape[1]
        self.count += count
        self.total = self.total.to(mean) + count * mean
        self.squares = self.squares.to(mean) + count * (variance + mean.square())

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of each channel."""
        mean = self.total / self.count
        return mean, (self.squares / self.count - mean.square()).clamp_min(0)


def _rebase(norm: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    mean, variance = _as_stored(mean, norm.running_mean), _as_stored(variance, norm.running_var)
    old, new = ((v.double() + norm.eps).sqrt() for v in (norm.running_var, variance))
    slope = norm.weight.double() / old
    changes = (
        (norm.bias, norm.bias.double() + slope * (mean - norm.running_mean.double())),
        (norm.weight, slope * new),
        (norm.running_mean, mean),
        (norm.running_var, variance),
    )
    sound = torch.stack([value.to(tensor.dtype).isfinite() for tensor, value in changes]).all(0)
    for tensor, value in changes:
        tensor.copy_(torch.where(sound, value.to(tensor.dtype), tensor))


def _as_stored(value: Tensor, tensor: Tensor) -> Tensor:
    """The value as ``tensor`` will hold it, where its rounding shifts more than rounding the norm's shift does."""
    return value.to(tensor.dtype).double() if tensor.itemsize < torch.float32.itemsize else value
