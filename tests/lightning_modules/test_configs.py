"""Every file under configs/ is read and instantiated, so none can fall behind the code."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningCLI

from lightning_modules.zoo import read_recipes

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
FOLDERS = {
    "teacher",
    "zoo",
    "distill",
    "finetune",
    "meta_train",
    "transfer",
}  # those that have a fast form under configs/debug


def label(path: Path) -> str:
    return path.relative_to(ROOT / "configs").as_posix().removesuffix(".yaml")


def is_zoo(path: Path) -> bool:
    return path.stem in ("zoo", "zoo_large", "zoo_resnets")


def test_how_many_there_are() -> None:
    names = {label(path) for path in CONFIGS}
    single = {"quickstart", "zoo_large", "quickstart_teacher", "zoo_resnets", "meta_train_resnets"}
    assert names == FOLDERS | {f"debug/{name}" for name in FOLDERS} | single
    assert len(CONFIGS) == 17


@pytest.mark.parametrize("path", CONFIGS, ids=label)
def test_each_opens_with_its_command_hardware_time_and_number(path: Path) -> None:
    lines = path.read_text().splitlines()
    head = "\n".join(lines[: next(i for i, line in enumerate(lines) if not line.startswith("#"))])
    for word in ("Hardware: ", "Time: ", "Expected: "):
        assert word in head
    commands = re.findall(r"--config (configs/\S+)", head)
    assert path.relative_to(ROOT).as_posix() in commands
    assert all((ROOT / command).is_file() for command in commands)


@pytest.mark.parametrize("path", [path for path in CONFIGS if not is_zoo(path)], ids=label)
def test_each_is_instantiated(
    path: Path, folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["--config", str(path)]
    text = path.read_text()
    if re.search(r"^\s+student: ", text, flags=re.MULTILINE):
        arguments += ["--model.student", str(folders[1]), "--model.teacher.model", str(folders[0])]
    options: dict[str, Any] = {"subclass_mode_model": True, "subclass_mode_data": True, "save_config_callback": None}
    made = LightningCLI(LightningModule, LightningDataModule, run=False, args=arguments, **options)
    assert isinstance(made.model, LightningModule)
    assert isinstance(made.datamodule, LightningDataModule)
    assert isinstance(made.trainer, Trainer)
    assert type(made.model).__name__ in text
    assert list(tmp_path.rglob("*.ckpt")) == []


@pytest.mark.parametrize("path", [path for path in CONFIGS if is_zoo(path)], ids=label)
def test_each_zoo_is_read(path: Path) -> None:
    recipes = read_recipes(path)
    splits = {recipe.split for recipe in recipes}
    of = {"zoo_large": {"train", "validation", "heldout"}, "zoo_resnets": {"train"}}  # there the run names the one out
    assert splits == of.get(path.stem, {"train", "validation"})
    if path.parent.name != "debug" and path.stem != "zoo_resnets":
        families = {split: {r.model for r in recipes if r.split == split} for split in splits}
        assert sum(r.split == "train" for r in recipes) >= 8
        assert len(families["train"]) >= 4
        assert len(families["validation"]) >= 3


def test_held_out_families_and_data_are_seen_nowhere_else() -> None:
    """The protocol of docs/heldout.md: whole families, one data set and one depth of the five ResNets."""
    recipes = read_recipes(ROOT / "configs" / "zoo_large.yaml")
    held_out, seen = ([r for r in recipes if (r.split == "heldout") == out] for out in (True, False))
    for family in ("regnet", "efficientnet", "tinynet", "densenet", "swin", "resnet101"):
        assert any(family in r.model for r in held_out), family
        assert not any(family in r.model for r in seen), family
    assert any(r.data == "digits" for r in held_out)
    assert not any(r.data == "digits" for r in seen)
    known = {r.model for r in seen}  # a model that is seen may be held out on data that are not
    assert all(r.data == "digits" for r in held_out if r.model in known)


def test_the_five_resnets_are_those_of_the_large_zoo() -> None:
    """But for the split, so that one may be copied to the other; the run leaves out one of them."""
    five = read_recipes(ROOT / "configs" / "zoo_resnets.yaml")
    large = {recipe.name: recipe for recipe in read_recipes(ROOT / "configs" / "zoo_large.yaml")}
    assert [recipe.model for recipe in five] == [f"resnet{depth}" for depth in (18, 34, 50, 101, 152)]
    assert all(replace(large[recipe.name], split="train") == recipe for recipe in five)
    text = (ROOT / "configs" / "meta_train_resnets.yaml").read_text()
    assert re.findall(r"leave_out: (\w+)", text) == ["resnet101_a"]
    assert "resnet101_a" in {recipe.name for recipe in five}


@pytest.mark.parametrize("name", sorted(FOLDERS))
def test_fast_forms_differ_in_size_alone(name: str) -> None:
    """The same classes and the same names of settings, so that what the fast form proves holds for the other."""
    full, fast = ((ROOT / "configs" / folder / f"{name}.yaml").read_text() for folder in ("", "debug"))
    classes = [re.findall(r"class_path: (\S+)", text) for text in (full, fast)]
    assert [c for c in classes[0] if "TensorBoard" not in c] == classes[1]
