"""What `adapt` is given beside a model and images: refused before anything runs, or made what a report can hold."""

from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

from hypercompress.errors import DataError, GeneratorError
from hypercompress.transfer.tuning import Tuned


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
