"""Every error that bad input can raise. Each is also the builtin a caller would expect to catch."""

from collections.abc import Sequence

NAMED = 5  # things in a message that may be about many


def listed(values: Sequence[object], most: int = NAMED) -> str:
    """The first of them, and how many more there are."""
    rest = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(map(str, values[:most])) + rest


class HypercompressError(Exception):
    """Base class: one line that says what was received, what was expected and what to do."""


class ModelError(HypercompressError, ValueError):
    """A model name, a model argument or a checkpoint that does not fit."""


class DataError(HypercompressError, ValueError):
    """A data set or an image folder that cannot be used."""


class BudgetError(HypercompressError, ValueError):
    """A budget outside (0, 1] or outside the reachable range."""


class NonFiniteError(HypercompressError, ValueError):
    """NaN or infinity in weights, images or statistics."""


class GeneratorError(HypercompressError, ValueError):
    """An unknown generator, or one that lacks what it needs (data, a checkpoint)."""


class ArtefactError(HypercompressError, OSError):
    """A student or generator folder that is missing, corrupt, tampered with, or in the way."""


class BenchmarkError(HypercompressError, ValueError):
    """Settings of a measurement out of range, or two models that are one."""


class ExportError(HypercompressError, RuntimeError):
    """A model that cannot be exported, or an exported file that does not give the model's outputs."""


class WriteError(HypercompressError, RuntimeError):
    """A write into a weight that is a product of factors, where it would be lost."""
