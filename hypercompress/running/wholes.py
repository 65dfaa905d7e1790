"""Counts and seeds as users pass them: of NumPy, too, and made int, so that a report can be written as JSON."""

from numbers import Integral
from typing import Any

from hypercompress.errors import GeneratorError

LARGEST = 2**63  # what torch's seeds stay below, either way


def whole(name: str, value: Any, least: int = 0) -> int:
    """The value as an int.

    Args:
        name: of the argument, for the message.

    Raises:
        GeneratorError: no whole number, or one below ``least`` or not below `LARGEST`.
    """
    if isinstance(value, Integral) and least <= int(value) < LARGEST:
        return int(value)
    lowest = "" if least <= -LARGEST else f" from {least}"
    raise GeneratorError(
        f"received {name}={value!r}; expected a whole number{lowest} that has 63 bits at most; pass one"
    )


def seed_of(value: Any) -> int:
    """A seed as an int; below zero torch takes it, too.

    Raises:
        GeneratorError: no whole number, or too large.
    """
    return whole("seed", value, -LARGEST)
