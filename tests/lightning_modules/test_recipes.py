"""A zoo's config is refused as a whole, with every fault of its entries, before any teacher is trained."""

from pathlib import Path

import pytest

from hypercompress.errors import DataError
from lightning_modules.recipes import Recipe, Variant, read_recipes

ENTRY = "name: a, model: resnet18, split: train, data: digits"


def config(folder: Path, *entries: str, defaults: str = "{}") -> Path:
    path = folder / "zoo.yaml"
    path.write_text(f"defaults: {defaults}\nteachers:\n" + "".join(f"  - {{{entry}}}\n" for entry in entries))
    return path


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ("augment: mirror", r"augment.*Expected .*'none', 'flip', 'shift', 'crop'.*mirror"),
        ("epochs: two", r"epochs.*Expected .*int.*two"),
        ("epochs: 0", r"epochs 0; expected 1 or more"),
        ("batch_size: 0", r"batch_size 0; expected 1 or more"),
        ("limit: 0, epochs: -1", r"epochs -1; expected 1 or more; limit 0; expected 1 or more"),
        ("model_args: 3", r"model_args.*Expected .*dict.*3"),
        ("optimization: {schedule: linear}", r"schedule.*linear"),
        ("optimization: {optimizer: adamww}", r"optimizer 'adamww'; expected a name of timm's"),
        ("optimization: {learning_rate: 0.1}", r"'learning_rate'"),
        ("optimization: {lr: -1.0}", r"lr -1\.0"),
        ("optimization: {lr: fast}", r"lr.*fast"),
        ("optimization: {lr: auto}", r"lr auto; expected a number: only a distillation can choose"),
    ],
)
def test_an_entry_that_no_teacher_can_be_trained_by(more: str, fault: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"zoo\.yaml with a: .*{fault}.*; expected entries of the form of Recipe"):
        read_recipes(config(tmp_path, f"{ENTRY}, {more}"))


def test_all_faults_are_named_at_once_also_those_of_the_defaults(tmp_path: Path) -> None:
    path = config(
        tmp_path,
        "name: a, model: resnet18",
        "name: b, model: resnet18, augment: none, epochs: 0",
        "name: c, base: a, noise: 0.1",
        defaults="{augment: mirror, split: train, data: digits}",
    )
    with pytest.raises(DataError, match=r"with a: .*mirror.*; b: epochs 0; .*; c: its base a comes after it, or is at"):
        read_recipes(path)


def test_what_fits_is_read_as_it_stands(tmp_path: Path) -> None:
    good = "epochs: 3, batch_size: 8, limit: null, augment: crop, optimization: {lr: 1, schedule: constant}"
    recipe, variant = read_recipes(config(tmp_path, f"{ENTRY}, {good}", "name: b, base: a, noise: 0.2"))
    settings = {"model": "resnet18", "split": "train", "data": "digits", "batch_size": 8, "augment": "crop"}
    settings["optimization"] = {"lr": 1, "schedule": "constant"}
    assert recipe == Recipe("a", epochs=3, **settings)  # type: ignore[arg-type]
    assert variant == Variant("b", epochs=0, base="a", noise=0.2, **settings)  # type: ignore[arg-type]
