"""How a model's outputs are read, as the batches tell: their targets say whether outputs are numbers, and which axis is
that of the classes.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hypercompress.packed.trials import passed
from hypercompress.running.batches import resized
from hypercompress.running.calibration import CalibrationSplit
from hypercompress.running.calling import ForwardFn, taking
from hypercompress.running.nested import opened
from hypercompress.running.outputs import NUMBERS, lacking, regressed
from hypercompress.running.outputs import class_axis as usual_axis

ASKED = 8  # shapes of labels; of each one batch is passed
IGNORED = (-100, 255)  # labels of no class, by custom


def read_as(
    teacher: nn.Module,
    split: CalibrationSplit | None,
    forward_fn: ForwardFn | None,
    outputs: str,
    class_axis: int | None = None,
) -> tuple[bool, int | None]:
    """Whether the outputs are numbers; and the axis of their classes, if that is another than `class_axis` says.

    Args:
        outputs: see `compress`.
        class_axis: where the labels do not say it.
    """
    if outputs == NUMBERS:
        return True, None
    batches = () if split is None else (*split.statistics, *split.select, *split.confirm)
    pairs = [batch for batch in batches if isinstance(opened(batch), (tuple, list)) and len(opened(batch)) == 2]
    pairs = [pair for pair in pairs if isinstance(opened(pair)[1], Tensor)]

    def gives(pair: Any) -> Tensor:
        return passed(teacher, opened(resized(pair, 2)), taking(forward_fn))

    if outputs == "auto" and _regresses(teacher, pairs, forward_fn, gives):
        return True, None
    axis = _axis_of_classes(pairs, gives)
    return False, class_axis if axis is None else axis


def _regresses(
    teacher: nn.Module, pairs: list[Any], forward_fn: ForwardFn | None, gives: Callable[[Any], Tensor]
) -> bool:
    """Whether the outputs are numbers: the second of a batch of two is what the model is to give, and that is numbers,
    or the model has no head, and no labels name classes. Of some samples alone several labels at once may look like
    one, so all in memory are asked.
    """
    if any(labels.ndim == 1 and _whole(labels) for labels in map(_labels, pairs)):
        return False
    pairs = [pair for pair in pairs if _labels(pair).ndim > 1]  # else there is no class axis
    if pairs:
        output = gives(pairs[0])
        if _labels(resized(pairs[0], 2)).shape == output.shape:
            return regressed(map(_labels, pairs), output)
    return forward_fn is None and _headless(teacher)


def _axis_of_classes(pairs: list[Any], gives: Callable[[Any], Tensor]) -> int | None:
    """The axis that the labels ``[b, *position]`` of all batches lack; ``None``: it is the one that is read without
    them, may be that, or there is none. Real numbers are labels of an axis of one class alone, which is a number.
    """
    shapes: dict[tuple[int, ...], Any] = {}
    for pair in pairs:
        if _labels(pair).ndim > 1 and len(shapes) < ASKED:
            shapes.setdefault(tuple(_labels(pair).shape[1:]), pair)
    found, usual, output = set[int](), None, None
    for number, pair in enumerate(shapes.values()):
        output, labels = gives(pair), _labels(resized(pair, 2))
        usual, axes = usual_axis(output), lacking(labels, output)
        axes = axes if _whole(labels) else {axis for axis in axes if output.shape[axis] == 1}
        found = found & axes if number else axes
        if not found or found == {usual}:
            return None
    axis = max(found, default=None)
    if output is None or axis is None or usual in found:
        return None
    return axis if _name_classes(map(_labels, pairs), output.shape[axis]) else None


def _name_classes(labels: Iterable[Tensor], classes: int) -> bool:
    """Whether labels of positions may be numbers of so many classes. Others (counts, bools) are as long as an axis by
    chance, and so are, of more than two classes, nothing but 0 and 1: several labels of a sample at once.
    """
    if classes == 1:  # a number at each position, and what it is to be
        return True
    most = 0
    for values in labels:
        if values.ndim < 2 or not _whole(values):
            continue
        known = values.long()
        known = known[(known != IGNORED[0]) & (known != IGNORED[1])]
        if values.dtype == torch.bool or (len(known) and not 0 <= int(known.min()) <= int(known.max()) < classes):
            return False
        most = max(most, int(known.max()) if len(known) else 0)
    return classes <= 2 or most > 1


def _labels(pair: Any) -> Tensor:
    labels: Tensor = opened(pair)[1]
    return labels


def _whole(labels: Tensor) -> bool:
    return not (labels.is_floating_point() or labels.is_complex())


def _headless(teacher: nn.Module) -> bool:
    """Whether the classifier, as timm's models tell theirs, computes nothing: the model gives features."""
    if not callable(getting := getattr(teacher, "get_classifier", None)):
        return False
    try:
        found = getting()
    except AttributeError as error:  # timm's EfficientViT-M asks its head for the layer inside
        found = error.obj
    parts = found if isinstance(found, tuple) else (found,)  # two, with distillation
    modules = [module for part in parts if isinstance(part, nn.Module) for module in part.modules()]
    return any(isinstance(module, nn.Identity) for module in modules) and not any(
        next(module.parameters(), None) is not None for module in modules
    )
