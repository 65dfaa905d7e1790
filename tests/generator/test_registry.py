"""Generators by name, and hypernetworks on disk."""

import contextlib
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor

from hypercompress.errors import ArtefactError, GeneratorError
from hypercompress.generator import (
    ANALYTIC,
    HypernetConfig,
    HypernetGenerator,
    Hypernetwork,
    load_generator,
    load_hypernetwork,
    save_hypernetwork,
)


def test_auto_is_the_hypernetwork_with_data_and_svd_without() -> None:
    assert isinstance(load_generator("auto"), HypernetGenerator)
    assert load_generator("auto", has_data=False) == ANALYTIC["svd"]
    assert isinstance(load_generator("hypernet", has_data=False), HypernetGenerator)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    network = Hypernetwork(HypernetConfig(width=16, depth=1, heads=2))
    for parameter in network.parameters():
        parameter.data += torch.randn(parameter.shape)
    save_hypernetwork(network, tmp_path / "mine", {"steps": 3})
    return tmp_path / "mine"


def reweighted(folder: Path, edit: Callable[[Tensor], Tensor]) -> Path:
    """The network with other weights, and their hash."""
    file, config = folder / "hypernet.safetensors", json.loads((folder / "config.json").read_text())
    data = save({name: edit(value) for name, value in load(file.read_bytes()).items()})
    file.write_bytes(data)
    (folder / "config.json").write_text(json.dumps(config | {"sha256": hashlib.sha256(data).hexdigest()}))
    return folder


def test_weights_that_are_not_finite_are_refused(folder: Path) -> None:
    reweighted(folder, lambda value: value * torch.nan)
    with pytest.raises(ArtefactError, match=r"hypernetwork .*mine with NaN or infinity in hypernet\.safetensors; exp"):
        load_hypernetwork(folder)


def test_half_the_precision_works_in_single(folder: Path) -> None:
    network = load_hypernetwork(reweighted(folder, lambda value: value.half()))
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_default_type_changes_no_weight(folder: Path, dtype: torch.dtype) -> None:
    wanted = load_hypernetwork(folder).state_dict()
    torch.set_default_dtype(dtype)
    try:
        found = load_hypernetwork(folder).state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_a_folder_in_the_home_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder.parent))
    assert load_generator("~/mine").name == "mine"


def test_a_full_disk_leaves_the_network_that_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    write = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if self.name.startswith("config.json"):
            write(self, data[:10])
            raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        save_hypernetwork(Hypernetwork(HypernetConfig(width=16, depth=1, heads=2)), folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.parametrize("step", [1, 2])
def test_an_interrupt_leaves_one_whole_network(step: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[Path] = []
    replace = Path.replace

    def interrupted(path: Path, target: Path) -> Path:
        moved.append(path)
        if len(moved) == step:
            raise KeyboardInterrupt
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    (folder / "notes.txt").write_text("mine")
    with contextlib.suppress(KeyboardInterrupt):
        save_hypernetwork(Hypernetwork(HypernetConfig(width=16, depth=1, heads=2)), folder)
    load_hypernetwork(folder)
    assert (folder / "notes.txt").read_text() == "mine"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize("name", list(ANALYTIC))
def test_analytic_generators_by_name(name: str) -> None:
    assert load_generator(name) is ANALYTIC[name]


@pytest.mark.parametrize("name", ["whitened", "kfac"])
def test_those_that_need_data_refuse_early(name: str) -> None:
    with pytest.raises(GeneratorError, match="received no calibration data"):
        load_generator(name, has_data=False)
    assert load_generator("prior", has_data=False).name == "prior"


@pytest.mark.parametrize(
    ("name", "hint"), [("kfak", "; did you mean kfac?"), ("svdd", "; did you mean svd?"), ("zz", "")]
)
def test_unknown_names_get_a_hint(name: str, hint: str) -> None:
    with pytest.raises(GeneratorError) as caught:
        load_generator(name)
    text = str(caught.value)
    assert text.startswith(f"received the generator '{name}'; expected one of auto, hypernet, svd")
    assert text.endswith(f"or the folder of a hypernetwork{hint}")


def test_hypernetworks_come_back_bit_for_bit(folder: Path) -> None:
    network = load_hypernetwork(folder)
    assert network.config == HypernetConfig(width=16, depth=1, heads=2)
    assert not network.training
    save_hypernetwork(network, folder.parent / "again", {"steps": 3})
    for name in ("hypernet.safetensors", "config.json"):
        assert (folder / name).read_bytes() == (folder.parent / "again" / name).read_bytes()
    generator = load_generator(folder)
    assert isinstance(generator, HypernetGenerator)
    assert (generator.name, generator.strength) == ("mine", 1.0)


def edited(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize("damage", ["no config", "no weights", "bit", "format", "field", "width", "list", "text"])
def test_damaged_folders_are_refused(folder: Path, damage: str) -> None:
    weights, config = folder / "hypernet.safetensors", folder / "config.json"
    if damage.startswith("no"):
        (config if damage == "no config" else weights).unlink()
    elif damage == "bit":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    elif damage == "format":
        edited(folder, format=99)
    elif damage == "field":
        edited(folder, config={"unheard": 1})
    elif damage == "width":
        edited(folder, config={"width": 32, "depth": 1, "heads": 2})
    else:
        config.write_text("[]" if damage == "list" else "{")
    said = {"bit": "altered; .*copy it again", "format": "of format 99; .*train it again"}
    with pytest.raises(ArtefactError, match=f"received the hypernetwork .*{said.get(damage, '')}"):
        load_hypernetwork(folder)
