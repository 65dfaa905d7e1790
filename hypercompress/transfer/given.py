"""What `adapt` is given beside a model: refused before anything runs, or made what a report can hold; and images that
it is given twice.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from hypercompress.errors import DataError, GeneratorError, one_line, warn
from hypercompress.transfer.tuning import Tuned

Key = tuple[int, tuple[int, ...], bytes]  # a label, and the shape and the digest of an image


def tuned_of(word: str) -> Tuned:
    """Raises GeneratorError for a word that is none of them."""
    if word not in list(Tuned):
        raise GeneratorError(f"received tuned={word!r}; expected one of {', '.join(Tuned)}; choose one")
    return Tuned(word)


def require_rate(rate: Any, follow: Any) -> None:
    """Raises GeneratorError for a learning rate that is not above 0, or a share that is not in (0, 1]."""
    if rate is not None and not (_real(rate) and rate > 0):
        raise GeneratorError(f"received a learning rate of {_told(rate)}; expected one above 0; pass one")
    if follow is not None and not (_real(follow) and 0 < follow <= 1):
        raise GeneratorError(f"received follow={_told(follow)}; expected a share of the way in (0, 1]; change it")


def _real(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _told(value: Any) -> str:
    return str(value) if _real(value) else repr(value)


def names_of(names: Any) -> list[str] | None:
    """Names of classes by label as texts, whatever they are.

    Args:
        names: any iterable of them; a table from name to label, as ``class_to_idx`` of torchvision; or ``None``.

    Raises:
        DataError: one text, nothing that can be iterated, or a table whose labels are not 0, 1, 2 and so on.
    """
    if names is None:
        return None
    if isinstance(names, Mapping):
        places = list(names.values())
        if not all(isinstance(place, Integral) for place in places) or sorted(places) != list(range(len(places))):
            raise DataError(
                f"received names as a table with the labels {places[:5]}; expected each label from 0 to "
                f"{len(places) - 1} once; pass a list of names by label"
            )
        return [str(name) for name, _ in sorted(names.items(), key=lambda item: item[1])]
    if isinstance(names, (str, bytes)) or not isinstance(names, Iterable):
        raise DataError(
            f"received names={names!r}; expected a list with a name for each class, by label; pass one, or none"
        )
    return [str(name) for name in names]


def whole_numbers(labels: Any) -> Tensor:
    """Labels as a tensor [n].

    Raises:
        DataError: no numbers, or not one row of them.
    """
    try:
        found = torch.as_tensor(labels)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"received labels of type {type(labels).__name__} that are no numbers ({one_line(error)}); expected a "
            "whole number from 0 for each image; number the classes"
        ) from error
    if found.ndim != 1:
        raise DataError(
            f"received labels of shape {list(found.shape)}; expected [n], a whole number from 0 for each image; pass "
            "one label an image"
        )
    return found


def first_ones(images: Tensor, labels: Int[Tensor, " n"], seen: set[Key], copied: set[Key]) -> Int[Tensor, " m"]:
    """Places of the images that have not come before with their label. A copy would give away the image that is left
    out to judge a head.

    Args:
        images: [n, ...]; the same in every bit is the same image.
        seen: what has come before; the new ones are added.
        copied: what came again is added.
    """
    places = []
    for place, (image, label) in enumerate(zip(images.detach().cpu(), labels.tolist(), strict=True)):
        content = image.contiguous().reshape(-1).view(torch.uint8).numpy()
        key = (label, tuple(image.shape), hashlib.blake2b(content, digest_size=16).digest())
        if key in seen:
            copied.add(key)
        else:
            seen.add(key)
            places.append(place)
    return torch.tensor(places, dtype=torch.int64)


def warn_if_copied(copied: Collection[Key]) -> None:
    """Warn of images that were left out as copies."""
    if copied:
        warn(
            "received support images more than once, each with one class; expected each once, also of a sampler that "
            "draws with replacement; copies are left out, as they would give away the image that a head is judged on",
        )
