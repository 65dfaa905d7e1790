"""The quickstart with few images and steps: every file is written, and every number in them is what it says."""

import csv
import json
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.quickstart import DATA, GENERATORS, TEACHER, Settings, quickstart
from hypercompress import from_pretrained
from hypercompress.data import Preprocess, loader, open_data
from hypercompress.fidelity import accuracy, compare
from hypercompress.generator import Hypernetwork, save_hypernetwork

IMAGES = 64
BUDGET = 0.04


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    root = tmp_path_factory.mktemp("quickstart")
    save_hypernetwork(Hypernetwork(), root / "hypernet")
    settings = Settings(
        out=root / "run",
        params=BUDGET,
        images=IMAGES,
        test_images=IMAGES,
        hypernet=str(root / "hypernet"),
        words=(
            "--trainer.max_steps=2",
            "--trainer.log_every_n_steps=1",
            "--trainer.limit_val_batches=1",
            "--data.batch_size=8",
        ),
        timing=0.01,
        shares=(0.1,),
    )
    quickstart(settings, Console(quiet=True))
    return root / "run"


def test_the_files_of_the_run(folder: Path) -> None:
    assert {"student", "report.json", "comparison.csv", "pareto.png"} <= {path.name for path in folder.iterdir()}
    assert (folder / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_the_comparison_holds_all_networks_within_the_budget(folder: Path) -> None:
    with (folder / "comparison.csv").open() as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["teacher", *GENERATORS, "distilled"]
    whole = int(rows["teacher"]["params"])
    assert float(rows["teacher"]["agreement"]) == 1.0
    assert float(rows["teacher"]["kl"]) == 0.0
    for name in (*GENERATORS, "distilled"):
        assert 0.9 * BUDGET * whole < int(rows[name]["params"]) <= BUDGET * whole
        assert int(rows[name]["macs"]) < int(rows["teacher"]["macs"])
        assert float(rows[name]["ms_batch_32"]) > 0


def test_the_saved_student_is_the_one_that_was_measured(folder: Path) -> None:
    student, teacher = from_pretrained(folder / "student"), from_pretrained(TEACHER)
    batches = list(loader(open_data(DATA, Preprocess.of(teacher), train=False), batch_size=IMAGES, limit=IMAGES))
    report = json.loads((folder / "report.json").read_text())
    measured = compare(teacher, student, batches)
    assert report["fidelity"]["images"] == IMAGES == measured.images
    assert report["fidelity"]["agreement"] == pytest.approx(measured.agreement)
    assert report["fidelity"]["kl"] == pytest.approx(measured.kl, rel=1e-3)
    assert report["student"]["params"] == sum(p.numel() for p in student.parameters())
    assert report["distilled_steps"] == 2


def test_distillation_went_through_lightning(folder: Path) -> None:
    start = from_pretrained(folder / "generated").state_dict()
    end = from_pretrained(folder / "student").state_dict()
    assert start.keys() == end.keys()
    assert any(not start[name].equal(end[name]) for name in start)
    assert list(folder.glob("logs/**/metrics.csv"))


def test_the_packaged_teacher_is_as_good_as_it_says() -> None:
    teacher = from_pretrained(TEACHER)
    data = open_data(DATA, Preprocess.of(teacher), train=False)
    assert accuracy(teacher, loader(data, batch_size=256)) > 0.91
    assert sum(path.stat().st_size for path in TEACHER.iterdir()) < 10_000_000
