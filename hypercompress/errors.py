"""Every error that bad input can raise, and its warnings. Each is also the builtin a caller would expect to catch."""

import sys
import warnings
from collections.abc import Sequence

NAMED = 5  # things in a message that may be about many
BETWEEN = frozenset(  # whose code may stand between a warning and the line of the user that it is about
    {"hypercompress", "lightning_modules", "lightning", "torch", "contextlib", "functools", "jaxtyping", "beartype"}
)


def listed(values: Sequence[object]) -> str:
    """The first of them, and how many more there are."""
    rest = f" and {len(values) - NAMED} more" if len(values) > NAMED else ""
    return ", ".join(map(str, values[:NAMED])) + rest


def one_line(error: Exception) -> str:
    """The message of somebody else's error, fit to be quoted inside ours."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."


def warn(message: str) -> None:
    """Warn at the line of the user that led here, however many calls and decorators are between; in a thread that runs
    a function of this package itself there is none, and it is `threading`'s.
    """
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_between(frame.f_code.co_filename, str(frame.f_globals.get("__name__"))):
        frame = frame.f_back
    names = frame.f_globals
    seen = names.setdefault("__warningregistry__", {})  # where Python notes what it has told of a module
    warnings.warn_explicit(
        message,
        UserWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        names.get("__name__") or "<string>",
        registry=seen,
    )


def _is_between(file: str, module: str) -> bool:
    """Whether code is of `BETWEEN`, or made by beartype, which names no file but ``<@beartype(...)>``."""
    return file.startswith("<@") or module.partition(".")[0] in BETWEEN


class HypercompressError(Exception):
    """Base class: one line that says what was received, what was expected and what to do."""


class ModelError(HypercompressError, ValueError):
    """A model name, a model argument or a checkpoint that does not fit."""


class DataError(HypercompressError, ValueError):
    """A data set or an image folder that cannot be used."""


def no_batch(use: str) -> DataError:
    """Of data for calibration or evaluation (``use``) in which there is nothing."""
    return DataError(f"received {use} data without a single batch; expected at least one; check the loader")


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
