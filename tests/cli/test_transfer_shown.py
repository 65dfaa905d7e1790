"""What `transfer` and `report` print of a student that was moved to a task."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hypercompress.cli.shown import show_task
from hypercompress.cli.terminal import Terminal
from hypercompress.cli.transfer import table
from tests.cli.words import Run

PLAIN = ("--data", "digits", "--shots", "2", "--no-levels", "--views", "0", "--network", "none")


@pytest.fixture(scope="module")
def moved(student: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student for which nothing was tried but ridge regression."""
    from hypercompress.cli import main

    folder = tmp_path_factory.mktemp("moved") / "moved"
    assert main(["transfer", str(student), str(folder), *PLAIN, "--json"]) == 0
    return folder


def cells(told: dict[str, Any], row: str) -> list[str]:
    """Of one row of the table, from the second column on."""
    console = Console(file=io.StringIO(), width=400)
    console.print(table(told))
    assert isinstance(console.file, io.StringIO)
    (line,) = (line for line in console.file.getvalue().splitlines() if line.startswith(f"│ {row} "))
    return [cell.strip() for cell in line.split("│")[2:-1]]


def test_what_was_not_tried_is_not_unknown(moved: Path) -> None:
    told = json.loads((moved / "report.json").read_text())["transfer"]
    for name in ("accuracy", "loss"):
        number = f"{told['loo']['plain'][name]:.4f}"
        assert cells(told, f"leave-one-out {name}") == [number, "not tried", "not tried", "not tried"]
    nothing = {kind: {"accuracy": None, "loss": None} for kind in told["loo"]}
    assert cells({**told, "loo": nothing}, "leave-one-out loss") == ["unknown"] * 4, "one image a class"


@pytest.mark.parametrize("even", [0.97, 1.3])
def test_a_head_on_all_stages_that_was_not_kept_has_a_loss(moved: Path, even: float) -> None:
    told = json.loads((moved / "report.json").read_text())["transfer"]
    told["levels"] |= {"loo_loss": {"last": 1.0, "even": even, "early": 1.4}}
    assert cells(told, "leave-one-out loss")[2] == f"{even:.4f}"
    assert cells(told, "leave-one-out accuracy")[2] == "unknown"


@pytest.mark.parametrize(
    ("levels", "line"),
    [
        ({"alike": 0.0937}, "task: near (alike 0.0937, at most 0.2)"),
        ({"alike": 0.36}, "task: far (alike 0.36, above 0.2)"),
        ({"alike": None}, "task: unknown (how alike MODEL answers the new classes is not known)"),
        ({}, "task: unknown (how alike MODEL answers the new classes is not known)"),
    ],
)
def test_how_near_a_task_is(levels: dict[str, Any], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal(quiet=False) as terminal:
        show_task({"levels": levels}, terminal)
    assert capsys.readouterr().out == f"{line}\n"


def test_both_commands_say_how_near_the_task_is(run: Run, student: Path, moved: Path, tmp_path: Path) -> None:
    told = run("transfer", student, tmp_path / "s", *PLAIN)[1]
    (line,) = (line for line in told.splitlines() if line.startswith("task: "))
    report = json.loads((moved / "report.json").read_text())["transfer"]
    assert line.startswith(f"task: {report['task']} (alike {report['levels']['alike']:.3g}, ")
    assert run("report", moved)[1].startswith(f"{line}\n")
    assert "task: " not in run("report", student)[1]
