"""What timm's optimizers ask a model for by the names of its parameters, with the names that a module around it has."""

import re
from collections.abc import Callable
from typing import Any

ANCHOR = re.compile(r"(?<![\[\\])\^")  # the start of a name, as timm's patterns say it; not ``[^...]``, not ``\^``


def below(path: str, name: str, value: Any) -> Any:
    """An attribute of the model at ``path``, for who asks the module around it.

    ``no_weight_decay`` names parameters, and ``group_matcher`` recognises them: timm compares both with the names that
    the outer module has. Left as they are they match nothing, without a word: all is decayed, and every layer learns
    at one rate. All else is as it is.

    Args:
        path: of the model in the module around it.
        name: of the attribute. value: it.
    """
    if name == "no_weight_decay" and callable(value):
        return lambda: {f"{path}.{parameter}" for parameter in value()}
    if name == "group_matcher" and callable(value):
        return lambda *args, **kwargs: _matcher(path, value(*args, **kwargs))
    return value


def _matcher(path: str, matcher: Any) -> Any:
    """A matcher in any form that `timm.models.group_with_matcher` takes, of names below ``path``."""
    if not isinstance(matcher, dict):
        return _stripped(path, matcher)
    return {group: _patterns(path, found) for group, found in matcher.items()}


def _stripped(path: str, ordinal: Callable[[str], Any]) -> Callable[[str], Any]:
    """A function of a parameter's name that is told the model's own."""
    return lambda name: ordinal(name.removeprefix(f"{path}."))


def _patterns(path: str, found: Any) -> Any:
    """Of one group: nothing, a pattern, or pairs of a pattern and an ordinal."""
    if found is None:
        return None
    if isinstance(found, str):
        return rf"^{re.escape(path)}\.(?:{ANCHOR.sub('', found)})"
    return [(_patterns(path, pattern), ordinal) for pattern, ordinal in found]
