"""`hypercompress report --html`: the page of the student, whole or not at all."""

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.cli.words import DATA, SIZE, Run


@pytest.fixture
def copy(student: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(student, tmp_path / "copy"))


def test_report_writes_a_page(run: Run, student: Path, tmp_path: Path) -> None:
    file = tmp_path / "new" / "report.html"
    code, out, err = run("report", student, "--html", file)
    assert (code, err) == (0, "")
    assert out == f"saved: {file}\n"
    report, page = json.loads((student / "report.json").read_text()), file.read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert "Student of test_resnet" in page
    assert all(f">{row['name']}</th>" in page for row in report["layers"])
    assert f">{report['student']['params']:,}</td>" in page
    assert f"<dd>{report['fidelity']['kl']:.4g} nats</dd>" in page
    assert "<dd>fashion_mnist_mini</dd>" in page
    assert page.count("<svg") == 2
    assert [path.name for path in file.parent.iterdir()] == ["report.html"]
    again = tmp_path / "again.html"
    assert run("report", student, "--html", again, "--json") == (0, json.dumps(report) + "\n", "")
    assert again.read_bytes() == file.read_bytes()


def test_a_page_is_replaced_only_on_demand(run: Run, student: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text("mine")
    code, out, err = run("report", student, "--html", file)
    assert (code, out) == (2, "")
    assert err == (
        f"error: received the output {file}, which exists; expected a new path; choose another or pass --overwrite "
        "(overwrite=True)\n"
    )
    assert file.read_text() == "mine"
    assert run("report", student, "--html", file, "--overwrite")[0] == 0
    assert file.read_text().startswith("<!DOCTYPE html>")
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", ["report.json", "config.json", "model.safetensors", "README.md"])
def test_a_page_never_replaces_a_part_of_the_student(run: Run, copy: Path, name: str) -> None:
    held = (copy / name).read_bytes()
    code, _, err = run("report", copy, "--html", copy / name, "--overwrite")
    assert code == 2
    assert "a part of the student itself" in err
    assert (copy / name).read_bytes() == held


def test_a_folder_is_no_page(run: Run, student: Path, tmp_path: Path) -> None:
    code, _, err = run("report", student, "--html", tmp_path, "--overwrite")
    assert code == 2
    assert err == f"error: received the output {tmp_path}, a folder; expected a file; add a name to it\n"


def test_a_folder_that_takes_no_files(run: Run, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = run("report", student, "--html", tmp_path / "file" / "report.html")
    assert (code, err.count("\n")) == (2, 1)
    assert "where nothing can be written" in err
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    code, _, err = run("report", student, "--html", tmp_path / "report.html")
    assert code == 2
    assert "where nothing can be written" in err
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_full_disk_leaves_nothing(run: Run, student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hypercompress.saved.whole_file.sync", full)
    code, _, err = run("report", student, "--html", tmp_path / "report.html")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: received '[Errno 28] No space left on device' while writing ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}", "which has no report"),
        ('{"teacher": 3}', "that is no report"),
        ('{"transfer": {}}', "that is no report"),
        ('{"layers": [{"name": "a"}]}', "that is no report"),
        ("[", "unreadable JSON"),
    ],
)
def test_a_report_that_is_none(run: Run, copy: Path, tmp_path: Path, content: str, said: str) -> None:
    (copy / "report.json").write_text(content)
    code, out, err = run("report", copy, "--html", tmp_path / "report.html")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("error: received ")
    assert said in err
    assert not (tmp_path / "report.html").exists()


def test_overwrite_is_of_a_page(run: Run, student: Path) -> None:
    code, _, err = run("report", student, "--overwrite")
    assert code == 2
    assert err.startswith("error: received --overwrite without --html; ")


def test_the_page_of_a_moved_student(run: Run, student: Path, tmp_path: Path) -> None:
    moved, file = tmp_path / "moved", tmp_path / "moved.html"
    assert run("transfer", student, moved, *SIZE, *DATA, "--shots", 2)[0] == 0
    assert run("report", moved, "--html", file)[0] == 0
    page = file.read_text(encoding="utf-8")
    assert page.index("Moved to a new task") < page.index("Size before it was moved") < page.index("Every layer")
