"""What config.json says about a student's network, as `save_pretrained` writes it; anybody may have written it."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from hypercompress.architecture import Architecture, Levels, ReadsLevels, read_levels
from hypercompress.architecture.levels import levels_from
from hypercompress.errors import ArtefactError, ModelError
from hypercompress.kinds import low_rank_layers
from hypercompress.saved.artefact import AS_SAVED, is_names

GEOMETRY = ("stride", "padding", "dilation", "groups", "padding_mode", "output_padding")


def ranks_in(config: Mapping[str, Any], folder: Path) -> tuple[dict[str, int], dict[str, int]]:
    """The ranks and the input ranks in a config.json.

    Raises:
        ArtefactError: something else stands there, or an input rank of a layer that has no rank.
    """
    ranks, inner = (_ranks(config.get(key, {}), folder) for key in ("ranks", "input_ranks"))
    if not set(inner) <= set(ranks):
        raise ArtefactError(
            f"received {folder}/config.json with an input rank for {', '.join(sorted(set(inner) - set(ranks)))}, which "
            f"has no rank; {AS_SAVED}"
        )
    return ranks, inner


def _ranks(value: Any, folder: Path) -> dict[str, int]:
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
    levels = _levels(value["levels"], folder) if "levels" in value else None
    return Architecture(**{key: value[key] for key in keys}, levels=levels)


def read_levels_in(value: Any, folder: Path, architecture: Architecture | None, skeleton: nn.Module) -> None:
    """Let the models in a skeleton read the levels in a config.json, in place, and those of the architecture there.

    Raises:
        ArtefactError: something else stands there, or the skeleton has no model of timm in the place of one.
    """
    if not isinstance(value, dict):
        raise ArtefactError(f"received {folder}/config.json with levels that are no table of paths; {AS_SAVED}")
    levels = {name: _levels(found, folder) for name, found in value.items()}
    if architecture is not None and architecture.levels is not None:
        levels[""] = architecture.levels
    for name, found in levels.items():
        try:
            read_levels(skeleton.get_submodule(name), found)
        except (AttributeError, TypeError) as error:
            raise ArtefactError(
                f"received a student that reads levels in {name or 'its network'} ({error}); expected a model of timm "
                "there; check the skeleton"
            ) from error


def _levels(value: Any, folder: Path) -> Levels:
    try:
        return levels_from(value)
    except ModelError as error:
        raise ArtefactError(f"received {folder}/config.json in which: {error}; {AS_SAVED}") from error


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


def parts_json(model: nn.Module, architecture: Architecture | None) -> dict[str, Any]:
    """What is said of single parts; earlier versions know no such keys, and need none."""
    geometry = geometry_of(model)
    return _levels_json(model, architecture) | ({"geometry": geometry} if geometry else {})


def geometry_of(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Of every factored layer that has any, by dotted path: stride, padding and the like of its parts, by theirs.

    Weights fit a layer of another stride or padding as well, which computes something else.
    """
    found = {}
    for name, layer in low_rank_layers(model).items():
        parts = {path: _settings(part) for path, part in layer.named_modules() if path}
        if told := {path: settings for path, settings in parts.items() if settings}:
            found[name] = told
    return found


def _settings(part: nn.Module) -> dict[str, Any]:
    values = {key: getattr(part, key, None) for key in GEOMETRY}
    told = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    return {key: value for key, value in told.items() if isinstance(value, (int, str, list))}


def require_geometry(model: nn.Module, config: Mapping[str, Any], folder: Path) -> None:
    """Raises ArtefactError if a layer of the network has another geometry than it had when the student was saved.

    Students that are older do not say.
    """
    told, here = config.get("geometry", {}), geometry_of(model)
    if not isinstance(told, dict):
        raise ArtefactError(f"received {folder}/config.json with a geometry that is no table of layers; {AS_SAVED}")
    for name, expected in told.items():
        if name in here and here[name] != expected:
            raise ArtefactError(
                f"received a skeleton whose layer {name} has {_first_difference(here[name], expected)}, as {folder} "
                "was saved; build it with the same arguments"
            )


def _first_difference(here: Mapping[str, Any], expected: Any) -> str:
    """Of the parts of one layer."""
    parts = expected if isinstance(expected, Mapping) else {}
    for part, settings in parts.items():
        for key, value in settings.items() if isinstance(settings, Mapping) else ():
            if (found := here.get(part, {}).get(key)) != value:
                return f"{key} {found} ({part}); expected {value}"
    return f"{here}; expected {expected}"


def _levels_json(model: nn.Module, architecture: Architecture | None) -> dict[str, Any]:
    """As `read_levels_in` has it: by dotted path, and only where no architecture has them."""
    parts = model.named_modules() if architecture is None else ()
    reading = {name: asdict(part.levels) for name, part in parts if isinstance(part, ReadsLevels)}
    return {"levels": reading} if reading else {}
