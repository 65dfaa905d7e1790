"""`--pareto`: the whole trade-off, without a student."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from hypercompress.allocation import ParetoPoint
from hypercompress.cli.pareto import TradeOff, best_within, thinned, write
from hypercompress.cli.terminal import Terminal
from hypercompress.specs import KlScale, Unit
from tests.cli.words import CALIBRATE, Run, rows_of


def test_pareto_needs_no_budget_and_builds_no_student(run: Run, teacher: tuple[object, ...], tmp_path: Path) -> None:
    name, *rest = teacher
    code, out, err = run(
        "generate", name, tmp_path / "s", *rest, "--generator", "kfac", *CALIBRATE, "--pareto", tmp_path / "plots"
    )
    assert (code, err) == (0, "")
    assert "predicted KL, --params" in out
    assert [path.name for path in tmp_path.iterdir()] == ["plots"]
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["pareto.csv", "pareto.png"]
    with Image.open(tmp_path / "plots" / "pareto.png") as picture:
        picture.load()
    for points in rows_of(tmp_path / "plots" / "pareto.csv").values():
        shares, losses = [p.share for p in points], [p.predicted_kl for p in points]
        assert shares == sorted(shares)
        assert losses == sorted(losses, reverse=True)
        assert (shares[-1], losses[-1]) == (pytest.approx(1), 0)


def test_pareto_lies_beside_out_and_predicts_its_student(run: Run, teacher: tuple[object, ...], tmp_path: Path) -> None:
    name, *rest = teacher
    words = ("--generator", "kfac", "--params", 0.2, *CALIBRATE, "--no-final-fit", "--pareto", "--json")
    code, out, err = run("generate", name, tmp_path / "s", *rest, *words)
    assert (code, err) == (0, "")
    result = json.loads(out)
    points = rows_of(tmp_path / "pareto.csv")["params"]
    assert [vars(point) for point in points] == result["pareto"]["params"]
    before, after = best_within(points, 0.2), next(point for point in points if point.share > 0.2)
    assert before is not None  # single ranks fill what the steps of the curve leave over
    assert after.predicted_kl <= result["predicted_kl"] <= before.predicted_kl


def test_a_scaled_prediction_carries_no_warning(run: Run, teacher: tuple[object, ...], tmp_path: Path) -> None:
    name, *rest = teacher
    words = (*rest, "--generator", "kfac", "--params", 0.5, *CALIBRATE, "--no-refit")
    warned = []
    for more in ((), ("--pareto",)):
        code, out, _ = run("generate", name, tmp_path / "s", *words, "--overwrite", *more)
        assert code == 0
        warned.append("far too small: go by what is measured" in out)
    assert warned == [True, False]


def test_pareto_refuses(run: Run, teacher: tuple[object, ...], tmp_path: Path) -> None:
    name, *rest = teacher
    (tmp_path / "pareto.csv").write_text("mine")
    words = ("generate", name, *rest, "--pareto", tmp_path)
    code, out, err = run(*words, "--generator", "svd")
    assert (code, out, err.count("\n")) == (2, "", 1)
    for part in ("--pareto without data", "no nats of KL", "pareto.csv, which exist"):
        assert part in err
    assert (tmp_path / "pareto.csv").read_text() == "mine"
    assert run(*words, "--generator", "kfac", *CALIBRATE, "--overwrite")[0] == 0
    assert (tmp_path / "pareto.csv").read_text().startswith("unit,share,predicted_kl\n")


@pytest.fixture
def private() -> Iterator[None]:
    """Nobody else may read new files."""
    before = os.umask(0o077)
    yield
    os.umask(before)


@pytest.mark.usefixtures("private")
def test_pareto_files_keep_links_and_permissions(tmp_path: Path) -> None:
    curve = [ParetoPoint(0.5, 1.0), ParetoPoint(1.0, 0.0)]
    where, real = tmp_path / "plots", tmp_path / "real.csv"
    for overwrite in (False, True):
        write(TradeOff(dict.fromkeys(Unit, curve), KlScale(1.0)), where, overwrite, Terminal(quiet=True))
        assert [stat.S_IMODE(path.stat().st_mode) for path in where.iterdir()] == [0o600, 0o600]
        if not overwrite:
            (where / "pareto.csv").rename(real)
            (where / "pareto.csv").symlink_to(real)
            real.write_text("old")
    assert (where / "pareto.csv").is_symlink()
    assert real.read_text().startswith("unit,share,predicted_kl\n")
    assert sorted(path.name for path in where.iterdir()) == ["pareto.csv", "pareto.png"]


def test_thinning_keeps_the_ends() -> None:
    points = [ParetoPoint(0.1 + 0.9 * (i / 9999) ** 3, 1 - i / 9999) for i in range(10_000)]
    few = thinned(points, 100)
    assert len(few) <= 100
    assert (few[0], few[-1]) == (points[0], points[-1])
    assert set(few) <= set(points)
    assert thinned(few, 100) == few
