"""Whether the labels of a set can be read as a model counts its classes."""

from collections.abc import Sequence

TOLD = 3  # names of strange classes


def mismatch(classes: Sequence[str], order: Sequence[str], outputs: int, *, fewer: bool = False) -> str | None:
    """Why the labels of a set cannot be read as a model's; ``None`` if they can, numbered by ``order``.

    Args:
        classes: of the set.
        order: of the model's classes, as far as it is known.
        outputs: of the model.
        fewer: whether it may have more outputs than classes, as while it learns.
    """
    if len(order) > outputs or (len(order) < outputs and not fewer):
        return f"{len(order)} classes in the data, {outputs} in the model"
    strange = [name for name in classes if name not in order]
    if not strange:
        return None
    return f"the model has no class {', '.join(strange[:TOLD])}{' ...' if len(strange) > TOLD else ''}"
