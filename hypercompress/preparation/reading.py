"""How a model's outputs are read, as the batches tell: their targets say whether outputs are numbers, and which axis is
that of the classes.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from hypercompress.packed.trials import passed
from hypercompress.running.batches import resized
from hypercompress.running.calibration import CalibrationSplit
from hypercompress.running.calling import ForwardFn, taking
from hypercompress.running.nested import opened
from hypercompress.running.outputs import NUMBERS, class_axis, lacking, regressed

ASKED = 8  # shapes of labels; of each one batch is passed


def read_as(
    teacher: nn.Module, split: CalibrationSplit | None, forward_fn: ForwardFn | None, outputs: str
) -> tuple[bool, int | None]:
    """Whether the outputs are numbers; and the axis of their classes, if that is another than `class_axis` says.

    Args:
        outputs: see `compress`.
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
    return False, _axis_of_classes(pairs, gives)


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
    found, usual = set[int](), None
    for number, pair in enumerate(shapes.values()):
        output, labels = gives(pair), _labels(resized(pair, 2))
        usual, axes = class_axis(output), lacking(labels, output)
        axes = axes if _whole(labels) else {axis for axis in axes if output.shape[axis] == 1}
        found = found & axes if number else axes
        if not found or found == {usual}:
            return None
    return None if usual in found else max(found, default=None)


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
