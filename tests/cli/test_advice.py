"""What an error advises is within reach of whoever reads it: names that are near, words that the program has."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from hypercompress.errors import ArtefactError
from hypercompress.models import load_model, near_student_folders
from tests.cli.words import DATA, Run
from tests.exported import mlp_student


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of a model of its user's own class."""
    folder = tmp_path_factory.mktemp("own") / "mine"
    mlp_student().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("evaluate", "studen", *DATA), "did you mean the student folder student?"),
        (("evaluate", "./studen", *DATA), "did you mean student? Or check the path"),
        (("bench", "studen"), "did you mean student? Or make it with"),
        (("evaluate", "qqqqqq", *DATA), "received 'qqqqqq', neither a student folder nor a timm name"),
    ],
)
def test_a_student_that_is_called_nearly_so_is_named(
    run: Run, student: Path, monkeypatch: pytest.MonkeyPatch, words: Sequence[object], told: str
) -> None:
    monkeypatch.chdir(student.parent)
    code, out, err = run(*words)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err


def test_only_students_beside_the_name_are_near(student: Path, tmp_path: Path) -> None:
    (tmp_path / "students").mkdir()  # of which it is none
    assert near_student_folders(str(tmp_path / "student")) == []
    assert near_student_folders(str(tmp_path / "nowhere" / "student")) == []
    assert near_student_folders(str(student.with_name("stdent"))) == [str(student)]


@pytest.mark.parametrize(
    "words", [("evaluate", *DATA), ("bench",), ("export", "out"), ("generate", "out"), ("transfer", "out", *DATA)]
)
def test_a_student_of_ones_own_class_is_for_python(
    run: Run, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    command, *rest = words
    code, out, err = run(command, own, *rest, *(("--params", 0.5) if command == "generate" else ()))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "of a model of your own class, which no command can build" in err
    assert "hypercompress.from_pretrained(folder, skeleton=YourModel())" in err
    assert list(tmp_path.iterdir()) == []


def test_report_reads_a_student_of_ones_own_class_and_no_teacher_is_made_of_it(run: Run, own: Path) -> None:
    assert run("report", own)[0] == 0
    with pytest.raises(ArtefactError, match=r"received the student .*mine of a model of your own class"):
        load_model(str(own))


@pytest.mark.parametrize("option", ["--params", "--macs", "--latency"])
def test_a_percentage_is_told_to_be_a_share(run: Run, option: str) -> None:
    _, _, err = run("generate", "test_resnet", "out", option, "40%")
    assert f"(argument {option}: expected a share such as 0.4, not '40%')" in err
