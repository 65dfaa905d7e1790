"""Whether the labels of a set can be read as a model counts its classes."""

import unicodedata
from collections.abc import Sequence

from timm.utils.misc import natural_key

TOLD = 3  # names of strange classes


def place_of(name: str, order: Sequence[str]) -> int | None:
    """The label that a class of this name has, ``None`` if there is none. Names that differ in their Unicode form alone
    are the same: a Mac writes folders in another form than people write lists.
    """
    if name in order:
        return list(order).index(name)
    forms = [unicodedata.normalize("NFC", known) for known in order]
    form = unicodedata.normalize("NFC", name)
    return forms.index(form) if form in forms else None


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
    strange = [name for name in classes if place_of(name, order) is None]
    if not strange:
        return None
    return f"the model has no class {', '.join(strange[:TOLD])}{' ...' if len(strange) > TOLD else ''}"


def unlike_timm(classes: Sequence[str]) -> str:
    """What is to be said of class folders that timm's own loader numbers otherwise (2 before 10, no matter the case);
    empty if it does not. torchvision numbers them by the alphabet, as is done here.
    """
    theirs = sorted(classes, key=natural_key)
    if list(classes) == theirs or list(classes) != sorted(classes):  # numbered by who made them
        return ""
    shown = [", ".join(names[:TOLD]) + (" ..." if len(names) > TOLD else "") for names in (list(classes), theirs)]
    return (
        f"{shown[0]}, as torchvision sorts them; timm's loader takes {shown[1]}: top-1 is wrong for a model trained so"
    )
