"""Where data lies, as the user writes it."""

from pathlib import Path


def expanded(place: str | Path) -> Path:
    """The path with ``~`` and ``~user`` written out; as it is where it exists so, or where no such user is known."""
    path = Path(place)
    if path.exists():
        return path
    try:
        return path.expanduser()
    except RuntimeError:  # no such user, or none with a home
        return path
