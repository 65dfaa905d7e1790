"""The latency program: what it says is what it measured."""

from pathlib import Path

import pytest

from benchmarks import (
    latency,
)
from benchmarks.shared.common import Results


def test_the_latency_program_says_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No claim about speed: the cache is its own, and a row is what the two times say, or empty for a refusal."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    latency.main(["--models", "test_resnet", "--shares", "0.95", "0.01", "--out", str(tmp_path)])
    rows = Results(tmp_path / "latency.csv", ("model", "share", "batch_size"), ()).rows
    assert [row["share"] for row in rows] == ["0.95", "0.01"]
    assert rows[1]["achieved"] == ""
    for row in (row for row in rows if row["achieved"]):
        assert float(row["achieved"]) == pytest.approx(float(row["student_ms"]) / float(row["teacher_ms"]), rel=1e-4)
        assert float(row["achieved_torch"]) > 0
