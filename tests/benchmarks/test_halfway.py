"""The program of steps half of the way, on a small network."""

from pathlib import Path

import pytest
import torch

from benchmarks import halfway
from benchmarks.shared.common import Results
from hypercompress import adapt
from hypercompress.models import load_model
from hypercompress.transfer import nearness

TEACHER = Path(halfway.__file__).parents[1] / "hypercompress" / "pretrained" / "fashion_mnist_teacher"


@pytest.mark.parametrize("bar", [-1.0, 1e9])
def test_rows_are_of_the_weights_that_adapt_would_have(
    bar: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(nearness, "BAR", bar)
    words = ["--data", "digits", "--backbones", str(TEACHER), "--shots", "2", "--episodes", "2", "--steps", "2"]
    words += ["--rate", "0.01", "--out", str(tmp_path)]
    halfway.main(words)
    results = Results(tmp_path / "halfway.csv", halfway.KEY, halfway.MADE_OF)
    assert [row["episode"] for row in results.rows] == ["0", "1"]
    backbone = halfway.named(TEACHER)
    model, _ = load_model(str(TEACHER))
    for index, row in enumerate(results.rows):
        assert halfway.as_adapt(row) == ("half" if bar > 0 else "end")
        episode = halfway.episode_of(backbone.pool("digits"), 2, index)
        wanted = {"start": (0, None), "half": (2, 0.5), "end": (2, 1.0)}
        for column, (count, share) in wanted.items():
            given = {"steps": count, "rate": 0.01, "follow": share, "levels": False, "seed": index}
            student = adapt(model, episode.support, episode.support_labels, **given)
            with torch.no_grad():
                right = (student(episode.query).argmax(1) == episode.query_labels).double().mean()
            assert float(row[column]) == pytest.approx(float(right), abs=1e-6)
    told = capsys.readouterr().out.splitlines()[-1].split("|")
    gains = {name: sum(float(r[name]) - float(r["start"]) for r in results.rows) / 2 for name in ("half", "end")}
    assert told[8].strip() == f"{100 * gains['end']:+.1f}"
    assert told[9].strip() == f"{100 * gains['half']:+.1f}"
    assert told[10].strip() == told[9 if bar > 0 else 8].strip()
    before = results.path.read_bytes()
    halfway.main(words)
    assert results.path.read_bytes() == before
