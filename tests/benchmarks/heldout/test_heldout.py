"""The held-out program: what it reads, which budgets it finds, every row once, and its bad input."""

import copy
import csv
import shutil
from pathlib import Path

import pytest

from benchmarks import heldout
from benchmarks.protocol import budgets, students
from benchmarks.protocol.budgets import Cell, bisect
from benchmarks.protocol.methods import (
    ABLATIONS,
    Case,
    Hypernetworks,
    draws,
    table,
)
from benchmarks.protocol.students import Starts
from benchmarks.protocol.subject import Subject, _data, read_entries
from benchmarks.shared.common import fidelity
from benchmarks.shared.distillation import Recipe
from hypercompress.errors import DataError, GeneratorError
from hypercompress.inspection import inspect
from hypercompress.specs import Unit
from tests.benchmarks.heldout.sizes import SIZES

SMALL = [f"--{name}-images={value}" for name, value in vars(SIZES).items()]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_only_held_out_teachers_are_read(zoo: Path, tmp_path: Path) -> None:
    assert [entry.name for entry in read_entries(zoo, "")] == ["net"]
    with pytest.raises(DataError, match="--teachers no; expected some of net"):
        read_entries(zoo, "", ["no"])
    with pytest.raises(DataError, match="no teacher of split 'heldout'"):
        read_entries(tmp_path, "")


def test_data_are_found_where_they_lie_now(tmp_path: Path) -> None:
    assert _data("fashion_mnist:/elsewhere", "/here") == "fashion_mnist:/here"
    assert _data("digits", "/here") == "digits"
    assert _data("/elsewhere/photos", "/here") == "/here/photos"
    assert _data(str(tmp_path), "/here") == str(tmp_path)


def test_images_of_different_use_are_different(subject: Subject) -> None:
    sets = {
        "pool": subject.pool,
        "validation": subject.validation,
        "test": subject.test,
    }
    found = {name: {tuple(image.flatten().tolist()) for image in part.images} for name, part in sets.items()}
    assert {name: len(images) for name, images in found.items()} == {"pool": 80, "validation": 16, "test": 40}
    assert not found["pool"] & found["validation"]
    assert not (found["pool"] | found["validation"]) & found["test"]
    drawn = [{tuple(image.flatten().tolist()) for image in subject.draw(seed).images} for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert all(len(images) == 48 and images <= found["pool"] for images in drawn)


@pytest.mark.parametrize("level", [0.95, 0.8, 0.5])
def test_bisection_finds_the_level(level: float) -> None:
    """What is kept rises as the square root of the share: the wanted share is the level's square."""
    asked: list[float] = []
    share, kept = bisect(lambda s: (asked.append(s), s**0.5)[1], 0.001, level)
    assert share == pytest.approx(level**2, abs=0.03)
    assert kept == pytest.approx(level, abs=budgets.TOLERANCE)
    assert len(asked) <= budgets.TRIES + 1


def test_bisection_takes_the_nearest_where_accuracy_jumps_and_none_where_all_is_easy() -> None:
    share, kept = bisect(lambda s: 0.3 if s < 0.2 else 0.85, 0.01, 0.8)
    assert kept == 0.85
    assert share is not None
    assert share >= 0.2
    assert bisect(lambda s: 0.7, 0.01, 0.5) == (None, 0.7)


def test_the_table_has_every_case_that_means_something() -> None:
    methods = ["svd", "prior", "hypernet", "random", "kfac-pink", "kfac-synthetic", *ABLATIONS, "hypernet@x"]
    cases = table(methods, [0, 100])
    assert len(cases) == len(set(cases))
    free = {case.method for case in cases if case.statistics == "none"}
    others = {"svd", "prior", "hypernet", "kfac-pink", "kfac-synthetic", "hypernet@x"}
    assert free == {*others, *ABLATIONS}
    images = {case.method for case in cases if case.statistics == "images"}
    assert images == set(methods) - {"prior", "kfac-pink", "kfac-synthetic", "hypernet-no-channels"}
    assert all(case.steps == 0 for case in cases if case.statistics == "none")
    assert table(["svd"], [20]) == [Case("svd", "images", 20)]
    for method in ("kfac-refitted", "kfac-norms"):
        assert table([method], [0, 20]) == [Case(method, "images", 20)]  # at 0 steps it is kfac
    assert not draws(Case("svd", "none", 0))
    drawn = ("kfac-pink", "kfac-gauss", "kfac-synthetic", "hypernet-synthetic", "hypernet-noise")
    assert all(draws(Case(method, "none", 0)) for method in drawn)


def test_every_row_is_made_once_and_says_what_was_measured(
    zoo: Path, subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(budgets, "TRIES", 2)
    monkeypatch.setattr(students, "PRUNING_STEPS", 4)
    # This teacher is not trained: at which share how much is kept is laid down, so that one level does not exist.
    monkeypatch.setattr(budgets, "_measure", lambda subject, unit: (lambda share: min(1.0, 0.7 + share), 0.2))
    words = ["--zoo", str(zoo), "--hypernet", str(zoo / "hypernet"), "--out", str(tmp_path), *SMALL]
    words += ["--methods", "kfac", "svd", "torch-pruning", "--steps", "0", "2", "--rates", "0.001"]
    words += ["--units", "params", "--levels", "0.95", "0.5"]
    assert heldout.main([*words, "--seeds", "1"]) == 0
    assert heldout.main([*words, "--seeds", "2"]) == 0
    found = rows(tmp_path / "heldout.csv")
    places = {(row["method"], row["statistics"], row["steps"], row["seed"], row["level"]) for row in found}
    drawn = {(m, "images", s, seed) for m in ("kfac", "svd", "torch-pruning") for s in "02" for seed in "01"}
    fixed = {("svd", "none", "0", "0")}
    assert places == {(*place, level) for place in drawn | fixed for level in ("0.95", "0.5")}
    assert len(found) == len(places)
    for row in found:
        assert row["note"] == "" or not row["top1"]
        assert (row["level"] == "0.5") == ("no such budget" in row["note"])
        assert not row["top1"] or int(row["params"]) > 0
        assert (row["rate"] == "0.001") == (row["steps"] == "2" and bool(row["top1"]))

    # A row is what an independent measurement finds.
    share = float(next(row["share"] for row in found if row["share"]))
    starts = Starts(subject, Hypernetworks(zoo / "hypernet"), 1, [Cell(Unit.PARAMS, 0.95, share)])
    network = starts.make(Case("kfac", "images", 0), starts.cells[0]).network
    assert network is not None
    (row,) = (r for r in found if (r["method"], r["steps"], r["seed"], r["level"]) == ("kfac", "0", "1", "0.95"))
    assert float(row["kl"]) == pytest.approx(fidelity(subject.teacher, network, subject.test).kl, rel=1e-4)
    assert int(row["macs"]) == inspect(network, subject.test.images[:2]).macs

    text = capsys.readouterr().out
    assert "net, params, 50%: the smallest student, 0.2000, keeps more (90.0%)" in text
    before = (tmp_path / "heldout.csv").read_bytes()
    monkeypatch.setattr(heldout, "open_subject", lambda *_: pytest.fail("the teacher was read for nothing"))
    assert heldout.main([*words, "--seeds", "2"]) == 0
    assert (tmp_path / "heldout.csv").read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {
        f"heldout{end}" for end in ("_budgets.csv", ".csv", ".md", ".png", "_free.png")
    }
    written = (tmp_path / "heldout.md").read_text()
    assert "net, params, 50%: the smallest student, 0.2000, keeps more (90.0%)" in written
    assert heldout.main(["--merge", str(tmp_path), "--teachers", "none of them", "--out", str(tmp_path)]) == 0
    assert "no rows of both" in capsys.readouterr().out
    assert (tmp_path / "heldout.md").read_text() == written  # a part is shown, not kept


def test_the_budgets_are_those_of_kfac_on_the_validation_images(zoo: Path, subject: Subject, tmp_path: Path) -> None:
    kept, least = budgets._measure(subject, Unit.MACS)
    assert 0 < least < 1
    student = Starts(subject, Hypernetworks(), 0, []).make(Case("kfac", "images", 0), Cell(Unit.MACS, 0.5, 0.6)).network
    assert student is not None
    measured = fidelity(subject.teacher, student, subject.validation)
    assert kept(0.6) == pytest.approx((measured.top1_student or 0) / (measured.top1_teacher or 1))
    assert kept(least) >= 0


def test_the_rate_is_chosen_on_the_validation_images(subject: Subject, starts: Starts) -> None:
    from benchmarks.protocol.rows import _distilled

    start = starts.make(Case("kfac", "images", 3), starts.cells[0]).network
    assert start is not None
    recipes = [Recipe("adamw", rate, steps=3) for rate in (1e-3, 1e-1)]
    trained = {recipe.lr: _distilled(subject, start, [recipe], 0)[0] for recipe in recipes}
    judged = {
        rate: fidelity(subject.teacher, network, subject.validation).top1_student for rate, network in trained.items()
    }
    _, rate = _distilled(subject, start, recipes, 0)
    assert judged[rate] == max(value or 0.0 for value in judged.values())


def test_equal_starts_are_distilled_once(subject: Subject, starts: Starts, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a guard chose `kfac` and the hypernetwork's student is `kfac`'s."""
    from benchmarks.protocol import rows

    made = []
    real = rows.distil_each
    monkeypatch.setattr(rows, "distil_each", lambda *given: made.append(given) or real(*given))
    start = starts.make(Case("kfac", "images", 2), starts.cells[0]).network
    assert start is not None
    same, other = copy.deepcopy(start), copy.deepcopy(start)
    next(other.parameters()).data += 1e-3
    found = [rows._after(subject, starts, network, steps, False, [1e-3]) for network, steps in ((start, 2), (same, 2))]
    assert found[0] == found[1]
    assert len(made) == 1
    for network, steps, frozen in ((other, 2, False), (start, 3, False), (start, 2, True)):
        rows._after(subject, starts, network, steps, frozen, [1e-3])
    assert len(made) == 4
    starts.make(Case("kfac", "images", 0), Cell(Unit.PARAMS, 0.95, 0.5))
    assert not starts.distilled  # of another budget: nothing is kept


@pytest.mark.parametrize(("method", "frozen"), [("kfac-refitted", False), ("kfac-norms", True)])
def test_norms_are_frozen_where_a_run_would(
    method: str, frozen: bool, subject: Subject, starts: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.protocol import rows

    made: list[list[Recipe]] = []
    real = rows.distil_each
    monkeypatch.setattr(rows, "distil_each", lambda *given: made.append(given[2]) or real(*given))
    for costs in (2.0, 1.0):
        monkeypatch.setattr(rows, "costs_of", lambda *_, costs=costs: costs)
        found = rows.measure(subject, starts, Case(method, "images", 1), starts.cells[0], rows.Settings(SIZES, [1e-3]))
        assert found["rate"] == 1e-3
        assert found["note"] == ("norms frozen" if frozen and costs == 2.0 else "")
    first = next(iter(made))
    assert [recipe.frozen_norms for recipe in first] == [frozen]
    assert len(made) == 1 + frozen  # what does not differ is made once


def test_tables_are_merged_with_their_stamps(tmp_path: Path) -> None:
    for name, seeds in (("a", (0, 1)), ("b", (1, 2))):
        for table_, key in zip(heldout.tables(tmp_path / name), (budgets.KEY, heldout.rows.KEY), strict=True):
            for seed in seeds:
                blank = dict.fromkeys(
                    (*key, "weights", "settings", "share", "kept", "note", "top1", "top1_teacher"), "1"
                )
                table_.add({**blank, "level": "0.8", "teacher": f"t{seed}", "seed": seed, "steps": 0, "note": name})
    table_ = tmp_path / "a" / "heldout.csv"
    table_.write_text(table_.read_text().replace(rows(table_)[0]["date"], "2001-01-01"))
    heldout.main(["--merge", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c")])
    found = {row["seed"]: (row["note"], row["date"] == "2001-01-01") for row in rows(tmp_path / "c" / "heldout.csv")}
    assert found == {"0": ("a", True), "1": ("b", False), "2": ("b", False)}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--zoo", "ZOO", "--seeds", "0"], "seeds 0; expected numbers above 0"),
        (["--zoo", "ZOO", "--steps", "-1", "--rates", "0"], "rates 0, steps 0; expected"),
        (["--zoo", "ZOO", "--test-images", "0"], "test 0; expected"),
        (["--zoo", "ZOO", "--other", "x"], "--other x; expected"),
        (["--zoo", "ZOO", "--teachers", "nobody"], "--teachers nobody; expected some of net"),
        (["--merge", "ZOO"], "without heldout_budgets.csv; expected the --out of a run"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    words: list[str], message: str, zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert heldout.main([str(zoo) if word == "ZOO" else word for word in words] + ["--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: received")
    assert message in error
    assert len(error.splitlines()) == 1


def test_neither_a_zoo_nor_a_merge(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        heldout.main([])
    assert "received neither --zoo nor --merge" in capsys.readouterr().err


def test_other_hypernetworks_have_names_and_weights_of_their_own(zoo: Path, tmp_path: Path) -> None:
    shutil.copytree(zoo / "hypernet", tmp_path / "other")
    with (tmp_path / "other" / "hypernet.safetensors").open("ab") as file:
        file.write(b"x")
    found = Hypernetworks(zoo / "hypernet", {"x": tmp_path / "other"})
    assert found.weights("kfac", "t") == "t"
    names = {method: found.weights(method, "t") for method in ("hypernet", "hypernet-noise", "hypernet@x")}
    assert names["hypernet"] == names["hypernet-noise"] != names["hypernet@x"]
    with pytest.raises(GeneratorError, match="received the method random"):
        found.load("random", 0)
