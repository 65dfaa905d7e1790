"""A student folder is data, and hashed."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from hypercompress.errors import ArtefactError
from hypercompress.saved import artefact
from hypercompress.saved.artefact import CARD, CONFIG, REPORT, WEIGHTS, Saved, load, save
from hypercompress.saved.restoring import load_state
from tests.artefacts import CONFIGURATION, REPORTED, write


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **changes}))


def test_round_trip(tmp_path: Path) -> None:
    state = write(tmp_path / "s")
    saved = load(tmp_path / "s")
    assert torch.equal(saved.state["0.weight"], state["0.weight"])
    assert saved.report == REPORTED
    assert saved.config["ranks"] == {"0": 2}
    assert {path.name for path in (tmp_path / "s").iterdir()} == {CONFIG, WEIGHTS, REPORT, CARD}
    card = (tmp_path / "s" / CARD).read_text()
    assert "| student | 2,000 | 25,000 | 8,000 |" in card
    assert "Budget: 0.5 of the teacher's params, achieved 0.4987. Generator: kfac, strength 0." in card
    assert "Fidelity: agreement 0.9, kl 0.01, images 10." in card  # an old report does not say on what
    assert 'from_pretrained(".", skeleton=YourModel())' in card
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_every_dtype_layout_and_tie_comes_back(tmp_path: Path) -> None:
    base = torch.randn(6, 4)
    state = {
        "half": torch.randn(3).half(),
        "brain": torch.randn(3).bfloat16(),
        "count": torch.tensor(7),
        "none": torch.zeros(0),
        "also none": torch.zeros(0),
        "last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "whole": base,
        "same": base,
        "turned": base.t(),
        "part": base[1:3],
    }
    write(tmp_path / "s", state)
    stored = load_file(tmp_path / "s" / WEIGHTS)
    assert "same" not in stored
    assert {"turned", "part", "none", "also none"} <= set(stored)
    saved = load(tmp_path / "s").state
    assert set(saved) == set(state)
    assert all(torch.equal(saved[name], state[name]) and saved[name].dtype is state[name].dtype for name in state)


def test_views_that_read_one_memory_differently_come_back(tmp_path: Path) -> None:
    numbers, waves = torch.arange(4.0), torch.randn(3, dtype=torch.complex64)
    state = {
        "numbers": numbers,
        "bits": numbers.view(torch.int32),
        "waves": waves,
        "turned back": waves.conj(),
        "imaginary": waves.imag,
        "negative": waves.conj().imag,
    }
    write(tmp_path / "s", state)
    saved = load(tmp_path / "s").state
    assert all(torch.equal(saved[name], state[name]) and saved[name].dtype is state[name].dtype for name in state)


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text there")
def test_a_path_that_is_not_utf_8_is_told_so(tmp_path: Path) -> None:
    write(tmp_path / "s")
    folder = (tmp_path / "s").rename(os.fsdecode(os.fsencode(tmp_path) + b"/st\xff"))
    with pytest.raises(ArtefactError, match=r"a path that is not UTF-8; expected one that is; rename the folder"):
        load(folder)
    load(folder.rename(tmp_path / "s"))


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_missing_files_are_named(tmp_path: Path, name: str) -> None:
    write(tmp_path / "s")
    (tmp_path / "s" / name).unlink()
    with pytest.raises(ArtefactError, match=f"without {name}; expected a student folder"):
        load(tmp_path / "s")


def test_a_missing_report_is_no_loss(tmp_path: Path) -> None:
    write(tmp_path / "s")
    (tmp_path / "s" / REPORT).unlink()
    assert load(tmp_path / "s").report == {}


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    write(tmp_path / "s")
    data = bytearray((tmp_path / "s" / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (tmp_path / "s" / WEIGHTS).write_bytes(data)
    with pytest.raises(ArtefactError, match=r"whose SHA-256 differs from config\.json"):
        load(tmp_path / "s")


def test_corrupt_weights_of_the_right_hash_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "s")
    (tmp_path / "s" / WEIGHTS).write_bytes(b"\xff" * 64)
    edit(tmp_path / "s", sha256=artefact._sha256(tmp_path / "s" / WEIGHTS))
    with pytest.raises(ArtefactError, match="received a corrupt"):
        load(tmp_path / "s")


def test_a_later_format_asks_for_an_upgrade(tmp_path: Path) -> None:
    write(tmp_path / "s")
    edit(tmp_path / "s", format=artefact.FORMAT + 1)
    with pytest.raises(
        ArtefactError, match="received a student of format 3; expected at most 2; upgrade hypercompress"
    ):
        load(tmp_path / "s")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "null", '{"format": 1}'])
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    write(tmp_path / "s")
    (tmp_path / "s" / CONFIG).write_text(text)
    with pytest.raises(ArtefactError, match="expected a student folder"):
        load(tmp_path / "s")


@pytest.mark.parametrize("change", [{"format": "1"}, {"format": None}, {"aliases": None}, {"aliases": ["a"]}], ids=str)
def test_a_configuration_of_other_types_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    write(tmp_path / "s")
    edit(tmp_path / "s", **change)
    with pytest.raises(ArtefactError, match=artefact.AS_SAVED):
        load(tmp_path / "s")


@pytest.mark.parametrize(
    "text", ["[1]", "5", '{"transfer": 5}', '{"classes": 5}', '{"transfer": {"classes": [1]}}'], ids=str
)
def test_a_report_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    write(tmp_path / "s")
    (tmp_path / "s" / REPORT).write_text(text)
    with pytest.raises(ArtefactError, match=r"report\.json that is no report; expected the folder as it was saved"):
        load(tmp_path / "s")


def test_an_alias_of_nothing_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "s")
    edit(tmp_path / "s", aliases={"a": "gone"})
    with pytest.raises(ArtefactError, match=r"with an alias of 'gone', which model\.safetensors lacks"):
        load(tmp_path / "s")


def test_weights_that_do_not_fit_are_listed_all_at_once() -> None:
    saved = Saved({}, {}, {"0.weight": torch.zeros(2, 3), "1.bias": torch.zeros(1)})
    model = nn.Sequential(nn.Linear(4, 2))
    with pytest.raises(ArtefactError) as caught:
        load_state(model, saved, Path("folder"))
    text = str(caught.value)
    assert "0.weight is (2, 3) not (2, 4); missing 0.bias; unexpected 1.bias" in text


def test_nothing_in_a_folder_is_a_pickle(tmp_path: Path) -> None:
    write(tmp_path / "s")
    save_file({"x": torch.zeros(1)}, tmp_path / "plain.safetensors")
    for path in (tmp_path / "s").iterdir():
        assert not path.read_bytes().startswith((b"\x80", b"PK"))


def test_the_card_says_what_was_measured_on_what_and_how_long_it_was_trained(tmp_path: Path) -> None:
    more = {"calibration": "photos", "measured_on": "validation images of others", "distilled_steps": 1200}
    save(tmp_path / "s", state={}, config=CONFIGURATION, report={**REPORTED, **more}, overwrite=False)
    card = (tmp_path / "s" / CARD).read_text()
    assert "It was calibrated on photos.\n" in card
    assert "Trained for 1,200 steps after that.\n" in card
    assert "Fidelity: agreement 0.9, kl 0.01, images 10, measured on validation images of others.\n" in card
    nothing = {**REPORTED, "fidelity": dict.fromkeys(REPORTED["fidelity"]), "measured_on": None}
    save(tmp_path / "s", state={}, config=CONFIGURATION, report=nothing, overwrite=True)
    assert "Fidelity" not in (tmp_path / "s" / CARD).read_text()
