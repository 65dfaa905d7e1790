"""What config.json says about a student's network, as `save_pretrained` writes it; anybody may have written it."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hypercompress.architecture import Architecture
from hypercompress.architecture.levels import levels_from
from hypercompress.errors import ArtefactError, ModelError
from hypercompress.saved.artefact import AS_SAVED, is_names


def ranks_in(value: Any, folder: Path) -> dict[str, int]:
    """The ranks in a config.json.

    Raises:
        ArtefactError: something else stands there.
    """
    if not isinstance(value, dict) or not all(type(rank) is int and 0 < rank <= 2**20 for rank in value.values()):
        raise ArtefactError(
            f"received {folder}/config.json with ranks that are no table of layer names and whole numbers above 0; "
            f"{AS_SAVED}"
        )
    return value


def names_in(value: Any, folder: Path) -> list[str]:
    """The unpacked layers in a config.json.

    Raises:
        ArtefactError: something else stands there.
    """
    if not is_names(value):
        raise ArtefactError(f"received {folder}/config.json with unpacked layers that are no list of names; {AS_SAVED}")
    return value


def architecture_in(value: Any, folder: Path) -> Architecture | None:
    """The architecture in a config.json.

    Raises:
        ArtefactError: something else stands there.
    """
    if value is None:
        return None
    keys = {"name": str, "args": dict, "pretrained_cfg": dict}
    if (
        not isinstance(value, dict)
        or set(value) - {"levels"} != set(keys)
        or not all(isinstance(value[key], kind) for key, kind in keys.items())
    ):
        raise ArtefactError(
            f"received {folder}/config.json with an architecture that is no name with args and pretrained_cfg; "
            f"{AS_SAVED}"
        )
    try:
        levels = levels_from(value["levels"]) if "levels" in value else None
    except ModelError as error:
        raise ArtefactError(f"received {folder}/config.json in which: {error}; {AS_SAVED}") from error
    return Architecture(**{key: value[key] for key in keys}, levels=levels)


def as_json(architecture: Architecture | None) -> dict[str, Any] | None:
    """As `architecture_in` reads it."""
    if architecture is None:
        return None
    return {
        "name": architecture.name,
        "args": dict(architecture.args),
        "pretrained_cfg": dict(architecture.pretrained_cfg),
        # Only where there are any: earlier versions refuse what they do not know.
        **({} if architecture.levels is None else {"levels": asdict(architecture.levels)}),
    }
