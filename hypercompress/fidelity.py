"""How close a student is to its teacher, measured: agreement, KL, and accuracy where there are labels."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hypercompress.errors import DataError, NonFiniteError, no_batch, warn
from hypercompress.running.calling import ForwardFn, call_model, evaluating
from hypercompress.running.nested import labels_of
from hypercompress.running.outputs import NONE, agreeing, divergence, in_single, logits_of, named

PART = 2**22  # values that a KL is computed of at once


@dataclass(frozen=True)
class Fidelity:
    """A student against its teacher on a set of images.

    Args:
        agreement: share of images (or positions, where each has logits) on which both name the same class; ``None``
            where outputs are numbers (`outputs.logits_of`). Logits with NaN name none.
        kl: mean of KL(teacher || student) in nats, of numbers as means of unit-variance Gaussians; infinity if the
            student gave NaN anywhere.
        top1_teacher, top1_student: accuracy; ``None`` without labels, or with one that is no class of the outputs.
        images: number of images measured.
    """

    agreement: float | None
    kl: float
    top1_teacher: float | None
    top1_student: float | None
    images: int


def _top1_labels(batch: Any, output: Tensor) -> Tensor | None:
    """The labels of a batch, if top-1 can be counted by them: one for each image, each a class of the output."""
    logits, labels = logits_of(output), labels_of(batch)
    if logits is None or labels is None or logits.shape[1] != 1 or bool((labels >= logits.shape[2]).any()):
        return None
    return labels


def remembering(teacher: nn.Module, forward_fn: ForwardFn | None = None) -> ForwardFn:
    """A ``forward_fn`` for comparing several students on the same batches: the teacher answers each batch once.

    Batches are told apart by identity, and kept: the identity of one that is gone could pass to another.

    Raises:
        NonFiniteError: when called: the teacher's answer holds NaN or infinity, to which no student is near.
    """
    run, known = forward_fn or call_model, dict[int, tuple[Any, Tensor]]()

    def answer(model: nn.Module, batch: Any) -> Tensor:
        if model is not teacher:
            return run(model, batch)
        if id(batch) not in known:
            output = run(model, batch)
            if not output.isfinite().all():
                raise NonFiniteError(
                    f"received NaN or infinity in the model's output for {len(output)} held-out samples; expected "
                    "finite values; check the calibration data"
                )
            known[id(batch)] = batch, output
        return known[id(batch)][1]

    return answer


def in_double(values: Tensor) -> Tensor:
    """The values in double precision, where the device has it."""
    return values.to(torch.float32 if values.device.type == "mps" else torch.float64)


def kl_of(teacher: Tensor, student: Tensor) -> Tensor:
    """`outputs.divergence` [b, rows], in nats, of outputs [b, ...] in double precision: of a near student single
    precision leaves noise.
    """
    return torch.cat([divergence(in_double(p), in_double(q)) for p, q in _parts(teacher, student)])


def _parts(teacher: Tensor, student: Tensor) -> Iterable[tuple[Tensor, Tensor]]:
    """Both in parts of so many samples as hold `PART` values, one at least: doubles take twice the memory."""
    samples = max(1, PART * len(teacher) // max(1, teacher.numel()))
    return zip(teacher.split(samples), student.split(samples), strict=True)


class _Mean:
    """A mean over batches, in double precision where there is one; NaN counts as infinity, nothing at all as NaN."""

    def __init__(self) -> None:
        self.sum, self.count = 0.0, 0

    def update(self, values: Tensor) -> None:
        precise = in_double(values)
        self.sum += float(precise.masked_fill(precise.isnan(), math.inf).sum())
        self.count += values.numel()

    @property
    def value(self) -> float:
        return self.sum / self.count if self.count else math.nan


@torch.no_grad()
def compare(
    teacher: nn.Module, student: nn.Module, batches: Iterable[Any], forward_fn: ForwardFn | None = None
) -> Fidelity:
    """Fidelity of ``student`` to ``teacher``; both run in evaluation mode on the batches' device.

    It is of this process's batches: processes that share images among them add up by themselves.

    Raises:
        DataError: ``batches`` is empty.
    """
    forward_fn = forward_fn or call_model
    means = defaultdict[str, _Mean](_Mean)
    images, labelled, classes = 0, True, True
    with evaluating(teacher), evaluating(student):
        for batch in batches:
            expected, got = in_single(forward_fn(teacher, batch)), in_single(forward_fn(student, batch))
            theirs, ours = named(expected), named(got)
            labels = _top1_labels(batch, expected)
            labelled, classes = labelled and labels is not None, classes and theirs is not None
            means["kl"].update(kl_of(expected, got))
            if theirs is not None and ours is not None:
                means["agreement"].update(agreeing(theirs, ours))
                if labels is not None:
                    means["top1_teacher"].update(theirs[:, 0] == labels)
                    means["top1_student"].update(ours[:, 0] == labels)
            images += len(expected)
    if images == 0:
        raise no_batch("evaluation")
    values = {name: mean.value for name, mean in means.items()}
    teacher_top1, student_top1 = (values[f"top1_{who}"] if labelled else None for who in ("teacher", "student"))
    kl = max(values["kl"], 0.0)  # below is rounding
    return Fidelity(values["agreement"] if classes else None, kl, teacher_top1, student_top1, images)


@torch.no_grad()
def accuracy(model: nn.Module, batches: Iterable[Any], forward_fn: ForwardFn | None = None) -> float:
    """Top-1 accuracy in [0, 1] of a classifier on labelled batches. Logits with NaN count as wrong, with a warning.

    Raises:
        DataError: a batch without labels, no batch at all, or outputs without one row of logits for an image.
    """
    forward_fn, mean, lost = forward_fn or call_model, _Mean(), 0
    with evaluating(model):
        for batch in batches:
            labels, found = labels_of(batch), named(forward_fn(model, batch))
            if labels is None:
                raise DataError("received a batch without labels; expected (images, labels); use class sub-folders")
            if found is None or found.shape[1] != 1:
                raise DataError("received a model without one class for each image; expected [b, classes] logits")
            mean.update(found[:, 0] == labels)
            lost += int((found == NONE).sum())
    if mean.count == 0:
        raise no_batch("evaluation")
    if lost:
        warn(
            f"received NaN in the model's outputs for {lost} of {mean.count} images, which count as wrong; "
            "expected finite ones; run it in a larger precision, or check its weights",
        )
    return mean.value
