"""The speed program: every row once, in each runtime, on spectra that decay."""

import csv
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import (
    speed,
)
from benchmarks.shared.common import Results, size_of
from hypercompress.benchmark import Settings
from hypercompress.compress import compress
from hypercompress.latency import _forms
from hypercompress.running.timing import Timing
from hypercompress.specs import Budget, Unit


def test_speed_makes_every_row_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "RUNTIMES", ("eager", "channels_last"))
    # A quarter of so small a transformer's products are attention, which no budget reaches.
    monkeypatch.setattr(speed, "BUDGETS", (Budget(params=0.5), Budget(macs=0.7)))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    # Times are not the matter here: every form counts as faster.
    times = lambda layer, *_: [(r, q, layer.cost(Unit.MACS, r, q or None) / layer.dense_macs) for r, q in _forms(layer)]  # noqa: E731
    monkeypatch.setattr("hypercompress.latency._ratios", times)
    words = ["--models", "test_vit", "--batch-sizes", "2", "--seconds", "0.001", "--out", str(tmp_path)]
    speed.main(words)
    with (tmp_path / "speed.csv").open() as file:
        rows = list(csv.DictReader(file))
    about = {(row["unit"], row["forms"], row["runtime"]) for row in rows}
    assert about == set(product(("params", "macs"), speed.FORMS, speed.RUNTIMES))
    for row in rows:
        alone = row["forms"] == "faster" and row["runtime"] == "eager"
        assert (int(row["layers"]) >= int(row["slower_layers"])) if alone else not row["layers"]
        assert float(row["teacher_ms"]) / float(row["student_ms"]) == pytest.approx(float(row["speedup"]), rel=1e-4)
        assert float(row["speedup"]) / float(row["macs_ratio"]) == pytest.approx(float(row["efficiency"]), rel=1e-4)
        assert row["unit"] == "params" or float(row["macs_ratio"]) == pytest.approx(1 / 0.7, rel=0.05)
    before, out = (tmp_path / "speed.csv").read_bytes(), capsys.readouterr().out
    assert out.count("| test_vit |") == len(rows)
    assert f"of {sum(int(row['layers'] or 0) for row in rows)} factored layers slower than dense" in out
    speed.main(words)
    assert (tmp_path / "speed.csv").read_bytes() == before
    speed.main([*words, "--threads", "1", "--seconds", "0.002"])  # other settings: made again, in their place
    assert (tmp_path / "speed.csv").read_bytes() != before
    assert len(Results(tmp_path / "speed.csv", speed.KEY).rows) == len(rows)


def test_speed_in_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10)).eval()
    vars(model)["pretrained_cfg"] = {"input_size": (3, 8, 8)}
    pair = speed.Pair(model, compress(model, Budget(params=0.5), generator="svd"))
    for ours, session in zip((pair.teacher, pair.student), pair.sessions, strict=True):
        torch.testing.assert_close(session(torch.ones(2, 3, 8, 8)), ours(torch.ones(2, 3, 8, 8)).detach())
    monkeypatch.setattr(speed, "interleaved", lambda *_: [Timing((3.0,) * 5), Timing((1.0,) * 5)])
    found = pair.speed(4, "onnxruntime", Settings(threads=1)).as_json()
    assert (found["batch_size"], found["threads"], found["device"], found["speedup"]) == (4, 1, "cpu", 3)
    example = torch.randn(1, 3, 8, 8)
    assert found["macs_ratio"] == pytest.approx(size_of(pair.teacher, example)[1] / size_of(pair.student, example)[1])


def test_the_spectra_of_the_speed_benchmark_decay() -> None:
    plan = speed.planned("test_vit", torch.device("cpu"))
    exponents = set()
    whole = [layer for layer in plan.spec.candidates if ".qkv." not in layer.name]  # that one is taken apart afterwards
    for layer in whole:
        values = torch.linalg.svdvals(plan.sketches[layer.name].weight)
        exponent = float((values[0] / values[1]).log2())
        torch.testing.assert_close(values, values[0] * torch.arange(1.0, len(values) + 1) ** -exponent)
        assert speed.DECAY[0] <= exponent <= speed.DECAY[1]
        exponents.add(exponent)
    assert len(exponents) == len(whole) > 3
