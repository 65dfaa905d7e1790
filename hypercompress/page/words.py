"""Values of a report as text. Anybody may have written it: what is no number of the right kind raises."""

import math
from collections.abc import Mapping
from typing import Any

from rich.cells import cell_len

NOT_MEASURED = "not measured"


def printable(text: str) -> str:
    """``text`` with escapes for what cannot stand in HTML or reorders what stands around it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def fitted(text: str, cells: int) -> str:
    """The end of ``text``, which tells layers apart, within so many columns of a monospaced font."""
    if cell_len(text) <= cells:
        return text
    text = text[-cells:]  # a wide character takes two
    while cell_len(text) >= cells:
        text = text[1:]
    return f"…{text}"


def counted(value: Any) -> int:
    """A number of things.

    Raises:
        ValueError: it is none.
    """
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def measured(value: Any, template: str) -> str:
    """A number in a template such as ``"{:.4g} nats"``; what is null was not measured.

    Raises:
        ValueError: it is no number.
    """
    if value is None:
        return NOT_MEASURED
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r} is no number")
    return template.format(value)


def changed(before: Any, after: Any) -> str:
    """Two counts, or the one that both are."""
    return f"{counted(before):,}" if before == after else f"{counted(before):,} → {counted(after):,}"


def size(value: Any) -> str:
    """A count, or that it is not known."""
    return NOT_MEASURED if value is None else f"{counted(value):,}"


def share(part: Any, whole: Any) -> str:
    """One count in percent of another; a hyphen where there is nothing to have a share of."""
    if part is None or whole is None:
        return "-"
    return f"{counted(part) / whole:.1%}" if counted(whole) else "-"


def layer_name(row: Mapping[str, Any]) -> str:
    """The dotted path; the model itself has an empty one."""
    return printable(str(row["name"])) or "(the model itself)"
