"""A file is written whole or not at all, and spares what others left in its place."""

import os
import stat
from pathlib import Path

import pytest

from hypercompress.errors import ArtefactError
from hypercompress.saved.whole_file import refuse_existing_file, whole_file


def refuses(*_: object, **__: object) -> None:
    raise PermissionError(1, "Operation not permitted")


def put(file: Path, text: str, *, overwrite: bool = False, meanwhile: str | None = None) -> None:
    with whole_file(file, overwrite) as staged:
        staged.write_text(text)
        if meanwhile is not None:
            file.write_text(meanwhile)


@pytest.mark.parametrize("links", [True, False])
def test_what_others_wrote_meanwhile_is_not_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    if not links:
        monkeypatch.setattr(os, "link", refuses)
    file = tmp_path / "page.html"
    with pytest.raises(ArtefactError, match=r"page\.html, which exists; expected a new path; choose another or pass"):
        put(file, "mine", meanwhile="theirs")
    assert file.read_text() == "theirs"
    put(file, "mine", overwrite=True, meanwhile="theirs")
    put(tmp_path / "new.html", "mine")
    assert file.read_text() == (tmp_path / "new.html").read_text() == "mine"
    assert (tmp_path / "new.html").stat().st_nlink == 1
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", "new.html"}


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_and_its_target_is_replaced(tmp_path: Path, there: bool) -> None:
    link, file = tmp_path / "link.html", tmp_path / "real" / "page.html"
    link.symlink_to(file)
    if there:
        file.parent.mkdir()
        file.write_text("old")
    put(link, "new", overwrite=there)
    assert link.is_symlink()
    assert file.read_text() == "new"
    assert [path.name for path in file.parent.iterdir()] == ["page.html"]


def test_the_permissions_of_what_is_overwritten_stay(tmp_path: Path) -> None:
    put(tmp_path / "page.html", "old")
    for mode in (0o600, 0o644):
        (tmp_path / "page.html").chmod(mode)
        put(tmp_path / "page.html", "new", overwrite=True)
        assert stat.S_IMODE((tmp_path / "page.html").stat().st_mode) == mode


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes have names here")
@pytest.mark.parametrize("overwrite", [True, False])
def test_what_is_no_regular_file_is_never_replaced(tmp_path: Path, overwrite: bool) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for output in (pipe, link):
        with pytest.raises(ArtefactError, match=r"a device, a pipe or the like; expected a file; choose another path"):
            put(output, "new", overwrite=overwrite)
    with pytest.raises(ArtefactError, match=f"received the output {os.devnull}, a device"):
        refuse_existing_file(Path(os.devnull), overwrite)
    assert pipe.is_fifo()
    assert link.is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "link"}


def test_a_tilde_is_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    put(Path("~/page.html"), "new")
    assert (tmp_path / "home" / "page.html").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
