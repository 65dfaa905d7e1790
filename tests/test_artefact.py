"""A student folder is data, hashed, and written all or nothing."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hypercompress import artefact, replacing
from hypercompress.artefact import CARD, CONFIG, REPORT, WEIGHTS, Saved, load, load_state, save, whole_folder
from hypercompress.errors import ArtefactError

CONFIGURATION: dict[str, Any] = {"architecture": None, "ranks": {"0": 2}}
COST = {"params": 4000, "macs": 50_000, "bytes": 16_000}
REPORTED: dict[str, Any] = {
    "teacher": COST,
    "student": {name: value // 2 for name, value in COST.items()},
    "budget": {"unit": "params", "target": 0.5, "achieved": 0.4987},
    "generator": {"name": "kfac", "strength": 0.0},
    "fidelity": {"agreement": 0.9, "kl": 0.01, "top1_teacher": None, "top1_student": None, "images": 10},
}


def write(folder: Path, state: dict[str, Tensor] | None = None, overwrite: bool = False) -> dict[str, Tensor]:
    state = {"0.weight": torch.randn(4, 3)} if state is None else state
    save(folder, state=state, config=CONFIGURATION, report=REPORTED, overwrite=overwrite)
    return state


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


def test_existing_folders_are_left_alone_unless_told(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    first = write(folder)
    refusal = r"which exists; expected a new path; choose another or pass --overwrite \(overwrite=True\)"
    with pytest.raises(ArtefactError, match=refusal):
        write(folder)
    assert torch.equal(load(folder).state["0.weight"], first["0.weight"])
    second = write(folder, overwrite=True)
    assert torch.equal(load(folder).state["0.weight"], second["0.weight"])
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtefactError, match="a file; expected a folder"):
        write(tmp_path / "file", overwrite=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious.txt").write_text("x")
    with pytest.raises(ArtefactError, match="is no student folder"):
        write(tmp_path / "other", overwrite=True)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    assert {path.name for path in tmp_path.iterdir()} == {"s", "file", "other", "empty"}


def test_failure_while_writing_leaves_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    first = write(folder)

    def fails(error: BaseException) -> None:
        with whole_folder(folder, overwrite=True) as staging:
            (staging / "half").write_text("x")
            raise error

    with pytest.raises(ArtefactError, match="received 'disk full' while writing"):
        fails(OSError("disk full"))
    with pytest.raises(KeyboardInterrupt):
        fails(KeyboardInterrupt())
    assert torch.equal(load(folder).state["0.weight"], first["0.weight"])
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_folders_are_exchanged_without_the_system_call_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replacing, "_swap", lambda one, other: False)
    write(tmp_path / "s")
    second = write(tmp_path / "s", overwrite=True)
    assert torch.equal(load(tmp_path / "s").state["0.weight"], second["0.weight"])
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_nothing_in_a_folder_is_a_pickle(tmp_path: Path) -> None:
    write(tmp_path / "s")
    save_file({"x": torch.zeros(1)}, tmp_path / "plain.safetensors")
    for path in (tmp_path / "s").iterdir():
        assert not path.read_bytes().startswith((b"\x80", b"PK"))


@pytest.mark.parametrize("config", ['{"model_type": "vit"}', '{"format": 2, "sha256": "0", "config": {}}', "[]", "{"])
def test_overwrite_spares_the_folders_of_other_programs(tmp_path: Path, config: str) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / CONFIG).write_text(config)
    (folder / "pytorch_model.bin").write_text("precious")
    with pytest.raises(ArtefactError, match="which is no student folder"):
        write(folder, overwrite=True)
    assert (folder / "pytorch_model.bin").read_text() == "precious"


@pytest.mark.parametrize("swaps", [True, False])
@pytest.mark.parametrize("links", [True, False])
def test_the_users_own_files_survive_an_overwrite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swaps: bool, links: bool
) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise OSError("no links here")

    if not swaps:
        monkeypatch.setattr(replacing, "_swap", lambda one, other: False)
    if not links:
        monkeypatch.setattr(os, "link", refuses)
    folder = tmp_path / "s"
    write(folder)
    (folder / "student.onnx").write_text("exported")
    (folder / "logs" / "deep").mkdir(parents=True)
    (folder / "logs" / "deep" / "log.txt").write_text("logged")
    (folder / "link").symlink_to("nowhere")
    (folder / CARD).write_text("old")
    second = write(folder, overwrite=True)
    assert torch.equal(load(folder).state["0.weight"], second["0.weight"])
    assert (folder / "student.onnx").read_text() == "exported"
    assert (folder / "logs" / "deep" / "log.txt").read_text() == "logged"
    assert str((folder / "link").readlink()) == "nowhere"
    assert (folder / CARD).read_text() != "old"
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_the_current_folder_and_those_above_take_a_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, name in [(tmp_path / "s", "."), (tmp_path / "s" / "below", "..")]:
        place.mkdir()
        monkeypatch.chdir(place)
        state = write(Path(name), overwrite=name == "..")
        assert torch.equal(load(tmp_path / "s").state["0.weight"], state["0.weight"])
        assert place.samefile(Path.cwd())
    names = {CONFIG, WEIGHTS, REPORT, CARD, "below"}
    assert {path.name for path in (tmp_path / "s").iterdir()} == names


def test_a_mount_point_takes_a_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda path, target: (moved.append(path.name), replace(path, target))[1])
    monkeypatch.setattr(replacing, "_mounted", lambda place: place.name == "s")
    (tmp_path / "s" / f".s.new-{2**30}-x").mkdir(parents=True)  # of a process that was killed
    inode = (tmp_path / "s").stat().st_ino
    write(tmp_path / "s")
    second = write(tmp_path / "s", overwrite=True)
    assert torch.equal(load(tmp_path / "s").state["0.weight"], second["0.weight"])
    assert (tmp_path / "s").stat().st_ino == inode
    assert len(moved) == 8
    assert moved[3] == moved[7] == CONFIG
    assert {path.name for path in (tmp_path / "s").iterdir()} == {CONFIG, WEIGHTS, REPORT, CARD}


def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path) -> None:
    write(tmp_path / "real" / "s")
    (tmp_path / "link").symlink_to(tmp_path / "real" / "s")
    (tmp_path / "dangling").symlink_to(Path("real") / "later")
    for name, target in {"link": "s", "dangling": "later"}.items():
        state = write(tmp_path / name, overwrite=True)
        assert (tmp_path / name).is_symlink()
        assert torch.equal(load(tmp_path / "real" / target).state["0.weight"], state["0.weight"])
    assert {path.name for path in tmp_path.iterdir()} == {"real", "link", "dangling"}
    assert {path.name for path in (tmp_path / "real").iterdir()} == {"s", "later"}


def test_only_ones_own_leftovers_are_cleared(tmp_path: Path) -> None:
    own, others = tmp_path / f".[a]*.new-{2**30}-x", tmp_path / f".about.new-{2**30}-x"
    own.mkdir()
    others.mkdir()
    write(tmp_path / "[a]*")
    assert {path.name for path in tmp_path.iterdir()} == {"[a]*", others.name}


def test_a_name_that_is_no_text_is_written_as_an_escape(tmp_path: Path) -> None:
    report = {**REPORTED, "calibration": os.fsdecode(b"photos \xff")}
    save(tmp_path / "s", state={"x": torch.ones(1)}, config=CONFIGURATION, report=report, overwrite=False)
    assert load(tmp_path / "s").report == report
    assert "photos \\udcff" in (tmp_path / "s" / CARD).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["n" * 256, "n" * 230, "/".join(["n" * 200] * 30)])
def test_a_name_that_is_too_long_is_refused_early(tmp_path: Path, name: str) -> None:
    with pytest.raises(ArtefactError, match=r"expected (at most 215|a shorter one); choose another path"):
        artefact.refuse_existing(tmp_path / name, overwrite=False)
    assert not list(tmp_path.iterdir())


def test_a_link_to_itself_is_refused_early(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ArtefactError, match="a link that leads to itself; expected a folder"):
        artefact.refuse_existing(tmp_path / "loop", overwrite=True)


@pytest.mark.parametrize(("umask", "folder", "file"), [(0o077, 0o700, 0o600), (0o022, 0o755, 0o644)])
def test_the_umask_is_obeyed(tmp_path: Path, umask: int, folder: int, file: int) -> None:
    before = os.umask(umask)
    try:
        write(tmp_path / "s")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == folder
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "s").iterdir()} == {file}


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
