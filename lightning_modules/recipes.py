"""The recipes of a zoo: what each teacher is, and the config that lists them."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from hypercompress.errors import DataError
from lightning_modules.images import Augment
from lightning_modules.index import SPLITS
from lightning_modules.optimization import Optimization


@dataclass(frozen=True)
class Recipe:
    """One teacher of the zoo.

    Args:
        name: of its folder.
        model: timm name.
        split: ``train``, ``validation`` or ``heldout`` (`index.SPLITS`).
        data: as `hypercompress.data.open_data` takes it; ``{root}`` is replaced by the command line's.
        model_args: arguments of ``timm.create_model``.
        pretrained_cfg: how images are prepared.
        epochs: passes over the training images.
        batch_size, limit, augment: see `ImageDataModule`.
        optimization: optimiser and schedule.
        seed: of initialisation and order.
    """

    name: str
    model: str
    split: str
    data: str
    model_args: dict[str, Any] = field(default_factory=dict)
    pretrained_cfg: dict[str, Any] = field(default_factory=dict)
    epochs: int = 2
    batch_size: int = 128
    limit: int | None = None
    augment: Augment = "flip"
    optimization: dict[str, Any] = field(default_factory=dict)
    seed: int = 0


@dataclass(frozen=True)
class Variant(Recipe):
    """A teacher that starts from another one of the zoo, with noise on its weights.

    In the config only ``name``, ``base`` and ``noise`` are needed; all else is the base's, but ``epochs``, which is 0.
    Then no weight is trained, and BatchNorm's moments are estimated anew on the training images.

    Args:
        base: name of the other teacher, listed before; itself a variant, if need be.
        noise: deviation of the noise as a share of each weight's root mean square, in (0, 1].
    """

    base: str = ""
    noise: float = 0.0


INHERITED = ("model", "split", "data", "model_args", "pretrained_cfg")  # what a variant may not choose


def read_recipes(path: Path) -> list[Recipe]:
    """Every teacher of a zoo config: ``defaults`` laid under each entry of ``teachers``, or its base under a variant.

    Raises:
        DataError: unreadable, or an entry that does not fit; all faults at once.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--defaults", type=dict[str, Any], default={})
    parser.add_argument("--teachers", type=list[dict[str, Any]], required=True)
    try:
        config = parser.parse_path(path)
    except (ArgumentError, OSError, TypeError) as error:
        raise DataError(
            f"received {path}, which is no zoo config ({' '.join(str(error).split())}); expected YAML with the lists "
            "of configs/zoo.yaml; check it"
        ) from error
    names = [str(entry.get("name", entry)) for entry in config.teachers]
    recipes: dict[str, Recipe] = {}
    faults = [f"{name}: named twice" for name in sorted({n for n in names if names.count(n) > 1})]
    for name, entry in zip(names, config.teachers, strict=True):
        try:
            whole = _with_base(entry, recipes, names) if "base" in entry else {**config.defaults, **entry}
            kind = Variant if "base" in entry else Recipe
            recipes[name] = _checked(kind(**_typed(kind, whole)))
        except (ArgumentError, TypeError, ValueError) as error:
            faults.append(f"{name}: {' '.join(str(error).split())}")
    faults += [f"{r.name}: split {r.split}" for r in recipes.values() if r.split not in SPLITS]
    if faults:
        raise DataError(
            f"received {path} with {'; '.join(faults)}; expected entries of the form of Recipe or Variant "
            "(lightning_modules/recipes.py); mend them"
        )
    return list(recipes.values())


def _with_base(entry: Mapping[str, Any], before: Mapping[str, Recipe], names: Collection[str]) -> dict[str, Any]:
    """The entry of a variant laid over its base.

    Raises:
        ValueError: there is no such base before it, it chooses what is the base's, or its noise is out of range.
    """
    base, noise = entry["base"], entry.get("noise")
    if base not in before:
        place = "comes after it, or is at fault itself" if base in names else "is no teacher of this config"
        raise ValueError(f"its base {base} {place}; name one that stands before it")
    if isinstance(noise, bool) or not isinstance(noise, int | float) or not 0 < noise <= 1:
        raise ValueError(f"noise {noise}; expected a share of the weights above 0 and at most 1")
    inherited = {f.name: getattr(before[base], f.name) for f in fields(Recipe)}
    if chosen := [key for key in INHERITED if entry.get(key, inherited[key]) != inherited[key]]:
        told = ", ".join(f"{key} {entry[key]} where its base has {inherited[key]}" for key in chosen)
        raise ValueError(f"{told}; a variant takes these from its base (of another split it would leak it)")
    return {**inherited, "epochs": 0, **entry, "noise": float(noise)}


@cache
def _parser(kind: type[Any]) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind)
    return parser


def _typed(kind: type[Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a dataclass. Raises ArgumentError if their names or types are not those of its fields."""
    parser = _parser(kind)  # type: ignore[arg-type]  # mypy does not take a class for hashable
    return dict(vars(parser.parse_object(dict(settings))))


def _checked(recipe: Recipe) -> Recipe:
    """The recipe, if a teacher can be trained by it.

    Raises:
        ArgumentError, ValueError: it cannot.
    """
    least = {"epochs": 0 if isinstance(recipe, Variant) else 1, "batch_size": 1, "limit": 1}
    numbers = {key: getattr(recipe, key) for key in least if getattr(recipe, key) is not None}
    if low := [f"{key} {value}; expected {least[key]} or more" for key, value in numbers.items() if value < least[key]]:
        raise ValueError("; ".join(low))
    if Optimization(**_typed(Optimization, recipe.optimization)).lr == "auto":
        raise ValueError("optimization of lr auto; expected a number: only a distillation can choose it")
    return recipe
