"""What a model's output is read as, logits of classes or numbers, and how far two outputs are apart: one reading for
curvature, guard, losses and what is measured of them.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from hypercompress.errors import GeneratorError, ModelError
from hypercompress.running.nested import flat

LOGITS = "logits"  # as transformers' models call them beside their losses and hidden states
NONE = -1  # no class
NUMBERS = "numbers"
SUM_TO_ONE = 1e-2  # within: probabilities in half precision
READINGS = ("auto", "classes", NUMBERS)  # of outputs that may be either by their shape


def tensor_of(output: Any, advice: str) -> Tensor:
    """The tensor that a model is run for: its output, the ``logits`` that this has, or the only tensor in it.

    Raises:
        ModelError: there is none, or several; ``advice`` says what to do.
    """
    if isinstance(output, Tensor):
        return output
    named = output.get(LOGITS) if isinstance(output, Mapping) else getattr(output, LOGITS, None)
    held = [named] if isinstance(named, Tensor) else [value for value in flat(output) if isinstance(value, Tensor)]
    if len(held) == 1:
        return held[0]
    raise ModelError(
        f"received a model that returns {type(output).__name__}{_listed(output)}; expected one tensor, or {LOGITS}; "
        f"{advice}"
    )


def _listed(output: Any) -> str:
    """What an output of several tensors has, by their keys or in their order."""
    items = output.items() if isinstance(output, Mapping) else enumerate(output) if isinstance(output, tuple) else ()
    known = ((key, list(value.shape) if isinstance(value, Tensor) else type(value).__name__) for key, value in items)
    shown = [f"{key} {what}" for key, what in known]
    return f" of {', '.join(shown)}" if shown else ""


def require_tensor(output: Any) -> None:
    """Raises ModelError if a ``forward_fn`` gave no tensor."""
    if not isinstance(output, Tensor):
        raise ModelError(
            f"received a forward_fn that returns {type(output).__name__}; expected the tensor that the model is run "
            "for, such as its logits; let it pick that"
        )


def require_gradient(output: Tensor) -> None:
    """Raises ModelError if no gradient of the output reaches the model."""
    if not output.requires_grad:
        raise ModelError(
            "received an output that is detached from the model (detach, torch.no_grad, numpy or an argmax?); expected "
            "one that has a gradient; pass forward_fn=lambda model, batch: ... that gives what comes before"
        )


def require_real_rows(output: Tensor) -> None:
    """Raises ModelError if the output has no axis of samples, or is of a type that has no gradient."""
    if output.ndim == 0 or not output.is_floating_point():
        raise ModelError(
            f"received a model that returns {output.dtype} of shape {list(output.shape)}; expected real numbers [b, "
            "...], such as logits, for each sample; pass forward_fn=lambda model, batch: ... that gives what comes "
            "before a mean or an argmax"
        )


def class_axis(output: Float[Tensor, "b ..."]) -> int:
    """The axis along which a batch's output has its classes, if it is logits: see `logits_of`."""
    return 2 if output.ndim == 3 else 1


def logits_of(output: Float[Tensor, "b ..."]) -> Float[Tensor, "b rows classes"] | None:
    """The rows of class logits in one batch's output; ``None`` if it is numbers, as of a regression.

    Classes are the second axis of ``[b, classes]`` and of maps ``[b, classes, *position]`` with two positions or more
    (segmentation), and the last of sequences ``[b, position, classes]``; elsewhere where labels say so (`as_read`). One
    class is a number.
    """
    if output.ndim < 2:
        return None
    last = output.movedim(class_axis(output), -1)
    rows = last[:, None] if output.ndim == 2 else last.flatten(1, -2)
    return rows if rows.shape[-1] > 1 else None


def require_reading(outputs: Any) -> None:
    """Raises GeneratorError if ``outputs`` names no reading."""
    if outputs not in READINGS:
        raise GeneratorError(
            f"received outputs={outputs!r}; expected one of {', '.join(READINGS)}: what the model's outputs are"
        )


def as_numbers(forward_fn: Callable[[nn.Module, Any], Tensor]) -> Callable[[nn.Module, Any], Tensor]:
    """The ``forward_fn`` with outputs in a shape that is read as numbers: ``[b, 1, k, 1]``, k of each sample."""
    return partial(_as_numbers, forward_fn)  # no closure: what keeps it can be pickled


def _as_numbers(forward_fn: Callable[[nn.Module, Any], Tensor], model: nn.Module, batch: Any) -> Tensor:
    output = forward_fn(model, batch)
    require_tensor(output)
    return output if output.ndim < 2 else output.flatten(1)[:, None, :, None]


def as_read(
    forward_fn: Callable[[nn.Module, Any], Tensor], *, numbers: bool, axis: int | None
) -> Callable[[nn.Module, Any], Tensor]:
    """The ``forward_fn`` with outputs in a shape that is read as what they are: `as_numbers`, or with the axis of their
    classes where `class_axis` says; ``None``: it is there.
    """
    if numbers:
        return as_numbers(forward_fn)
    return forward_fn if axis is None else partial(_by_classes, forward_fn, axis)


def _by_classes(forward_fn: Callable[[nn.Module, Any], Tensor], axis: int, model: nn.Module, batch: Any) -> Tensor:
    output = forward_fn(model, batch)
    require_tensor(output)
    return output.movedim(axis, class_axis(output))  # a view: `curvature` knows whose


def lacking(labels: Tensor, output: Float[Tensor, "b ..."]) -> set[int]:
    """The axes of an output that labels ``[b, *position]`` do not have: each may be that of the classes."""
    shape = output.shape
    return {axis for axis in range(1, output.ndim) if shape[:axis] + shape[axis + 1 :] == labels.shape}


def regressed(batches: Iterable[Tensor], output: Float[Tensor, "b ..."]) -> bool:
    """Whether the labels of some batches say that outputs are numbers: for each sample of the shape of an output's, and
    not all probabilities of classes, as one-hot rows are. Whole numbers and truths are such labels, too: several at
    once, or counts. Rows of zeros, as samples without a label have, say nothing unless all are.
    """
    classes = []  # of each batch: whether some row names one
    for labels in batches:
        if labels.is_complex() or labels.shape[1:] != output.shape[1:]:
            continue
        if (rows := logits_of(labels.float())) is None:  # torch compares and adds unsigned ones on no CPU
            continue
        sums = rows.sum(-1)
        if not bool((rows >= 0).all() and (((sums - 1).abs() < SUM_TO_ONE) | (sums == 0)).all()):
            return True
        classes.append(bool(sums.any()))
    return bool(classes) and not any(classes)


def named(output: Float[Tensor, "b ..."]) -> Int64[Tensor, "b rows"] | None:
    """The class that each row of logits names, `NONE` where one of them is NaN; ``None`` of numbers."""
    logits = logits_of(output)
    return None if logits is None else logits.argmax(-1).masked_fill(logits.isnan().any(-1), NONE)


def agreeing(theirs: Int64[Tensor, "b rows"], ours: Int64[Tensor, "b rows"]) -> Bool[Tensor, "b rows"]:
    """Where two outputs name the same class: two that name none do not."""
    return (theirs == ours) & (theirs != NONE)


def in_single(output: Tensor) -> Tensor:
    """In single precision at least: differences of half precision would be rounded once more."""
    return output if output.dtype == torch.float64 else output.float()


def divergence(
    teacher: Float[Tensor, "b ..."], student: Float[Tensor, "b ..."], temperature: float = 1.0
) -> Float[Tensor, "b rows"]:
    """KL(teacher || student) in nats of each row of logits, both softened by ``temperature``.

    Of numbers ``[b, ...]``, in one row: half the squared difference, the KL of Gaussians of unit variance about them.
    """
    teacher, student = in_single(teacher), in_single(student)
    theirs, ours = logits_of(teacher), logits_of(student)
    if theirs is None or ours is None:
        return (teacher - student).square()[:, None].flatten(1).sum(1, keepdim=True) / 2
    log_p, log_q = F.log_softmax(theirs / temperature, -1), F.log_softmax(ours / temperature, -1)
    return (log_p.exp() * (log_p - log_q)).sum(-1)
