"""What a model's output is read as, wherever two of them are compared: logits of classes, or numbers."""

from jaxtyping import Float
from torch import Tensor


def logits_of(output: Float[Tensor, "b ..."]) -> Float[Tensor, "b rows classes"] | None:
    """The rows of class logits in one batch's output; ``None`` if it is numbers, as of a regression.

    Classes are the second axis of ``[b, classes]`` and of maps ``[b, classes, *position]`` with two positions or more
    (segmentation), and the last of sequences ``[b, position, classes]``. One class is a number.
    """
    if output.ndim < 2:
        return None
    rows = output[:, None] if output.ndim == 2 else output if output.ndim == 3 else output.movedim(1, -1).flatten(1, -2)
    return rows if rows.shape[-1] > 1 else None
