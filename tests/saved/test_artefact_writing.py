"""A student folder is written all or nothing, and spares what others left in its place."""

import os
import stat
from pathlib import Path

import pytest
import torch
from torch import nn

from hypercompress.errors import ArtefactError
from hypercompress.report import bytes_of
from hypercompress.saved import artefact, replacing
from hypercompress.saved.artefact import CARD, CONFIG, REPORT, WEIGHTS, load, save, whole_folder
from hypercompress.saved.replacing import replaced
from hypercompress.student import Student
from tests.artefacts import CONFIGURATION, REPORTED, write


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


def test_a_state_that_is_no_tensor_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"whose state has 1\._extra_state, no tensors; .*get_extra_state"):
        write(tmp_path / "s", {"0.weight": torch.ones(2), "1._extra_state": {"scale": 1.0}})  # type: ignore[dict-item]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor, .*:UserWarning")
def test_tensors_that_the_file_cannot_hold_are_named(tmp_path: Path) -> None:
    state = {
        "0.weight": torch.ones(2),
        "table": torch.ones(2, dtype=torch.complex128),
        "mask": torch.eye(2).to_sparse(),
        "codes": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.quint8),
    }
    for names in (["table"], ["mask"], ["codes"]):
        with pytest.raises(ArtefactError, match=rf"whose state has {names[0]} \(torch\.\w+\); expected dense tensors"):
            write(tmp_path / "s", {name: state[name] for name in ("0.weight", *names)})
    with pytest.raises(
        ArtefactError, match=r"table \(torch\.complex128\), mask \(torch\.sparse_coo\), codes \(torch\.q"
    ):
        write(tmp_path / "s", state)
    assert list(tmp_path.iterdir()) == []


def test_a_student_with_a_sparse_buffer_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    model.register_buffer("mask", torch.eye(2).to_sparse())
    assert bytes_of(model) == 4 * 8
    with pytest.raises(ArtefactError, match=r"whose state has mask \(torch\.sparse_coo\)"):
        Student(model, None, REPORTED).save_pretrained(tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_a_tilde_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    state = write(Path("~/s"))
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    for folder in (tmp_path / "home" / "s", Path("~/s")):
        assert torch.equal(load(folder).state["0.weight"], state["0.weight"])


def test_folders_are_exchanged_without_the_system_call_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replacing, "_swap", lambda one, other: False)
    write(tmp_path / "s")
    second = write(tmp_path / "s", overwrite=True)
    assert torch.equal(load(tmp_path / "s").state["0.weight"], second["0.weight"])
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


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


def test_the_permissions_of_what_is_overwritten_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for moved in (False, True):
        monkeypatch.setattr(replacing, "_mounted", lambda place, moved=moved: moved and place.name == "s")
        write(tmp_path / "s", overwrite=moved)
        (tmp_path / "s").chmod(0o700)
        (tmp_path / "s" / WEIGHTS).chmod(0o600)
        (tmp_path / "s" / REPORT).chmod(0o640)
        (tmp_path / "s" / CARD).unlink()
        write(tmp_path / "s", overwrite=True)
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "s").iterdir()}
        assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o700
        assert (modes[WEIGHTS], modes[REPORT]) == (0o600, 0o640)
        assert modes[CARD] == modes[CONFIG], "as the umask has it"


def test_an_empty_private_folder_stays_private(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir(mode=0o700)
    write(tmp_path / "s")
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o700


def filled(folder: Path, place: Path) -> None:
    with replaced(folder, last=CONFIG, overwrite=False) as staging:
        (staging / CONFIG).write_text("new")
        place.mkdir(exist_ok=True)
        (place / CONFIG).write_text("theirs")


@pytest.mark.parametrize("looks", [True, False])
@pytest.mark.parametrize("mounted", [True, False])
@pytest.mark.parametrize("there", [True, False])
def test_what_others_wrote_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool, mounted: bool, looks: bool
) -> None:
    """By the last look, and by the system where they come after that; file by file there is only the look."""
    if not looks and not mounted:
        monkeypatch.setattr(replacing, "_refuse_filled", lambda folder, place: None)
    monkeypatch.setattr(replacing, "_mounted", lambda place: mounted)
    if there:
        (tmp_path / "s").mkdir()
    (tmp_path / "link").symlink_to("s")
    with pytest.raises(ArtefactError, match=r"output folder .*link, which exists; expected a new path"):
        filled(tmp_path / "link", tmp_path / "s")
    assert (tmp_path / "s" / CONFIG).read_text() == "theirs"
    assert {path.name for path in tmp_path.iterdir()} == {"s", "link"}


@pytest.mark.parametrize("there", [True, False])
def test_a_new_folder_takes_the_place_of_an_empty_one(tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "s" / f".s.new-{2**30}-x").mkdir(parents=True)  # of a process that was killed
    with replaced(tmp_path / "s", last=CONFIG, overwrite=False) as staging:
        (staging / CONFIG).write_text("new")
    assert [path.name for path in (tmp_path / "s").iterdir()] == [CONFIG]
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
