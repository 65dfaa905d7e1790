"""Whether the labels of a set can be read as a model counts its classes."""

import unicodedata
from collections.abc import Iterable, Sequence

from timm.utils.misc import natural_key

TOLD = 3  # names of strange classes


def places_of(names: Iterable[str], order: Sequence[str]) -> dict[str, int]:
    """The labels that classes of these names have, by name; those that ``order`` lacks are left out.

    Names that differ in their Unicode form alone are the same, as a Mac writes folders in another form than people
    write lists; an exact name goes before.
    """
    known = {_composed(name): place for place, name in reversed(list(enumerate(order)))}
    known |= {name: place for place, name in reversed(list(enumerate(order)))}
    found = {name: known.get(name, known.get(_composed(name))) for name in names}
    return {name: place for name, place in found.items() if place is not None}


def labels_in(order: Sequence[str], names: Sequence[str]) -> list[int]:
    """The label of each of ``names``, by `places_of`.

    Raises:
        ValueError: ``order`` lacks one.
    """
    places = places_of(names, order)
    if missing := [name for name in names if name not in places]:
        raise ValueError(f"no class {missing[0]} among {order}")
    return [places[name] for name in names]


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
    known = places_of(classes, order)
    strange = [name for name in classes if name not in known]
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


def _composed(name: str) -> str:
    """The name as most systems write it: that of macOS parts letters from their accents."""
    return unicodedata.normalize("NFC", name)
