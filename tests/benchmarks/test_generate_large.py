"""The program for large networks: it measures a process."""

from pathlib import Path

import pytest

from benchmarks import (
    generate_large,
)
from benchmarks.shared.common import Results


@pytest.mark.slow
def test_the_program_for_large_networks_measures_a_process(tmp_path: Path) -> None:
    generate_large.main(["--models", "test_vit", "--generator", "svd", "--out", str(tmp_path)])
    (row,) = Results(tmp_path / "generate_large.csv", ("model", "generator", "params"), ()).rows
    assert float(row["seconds"]) > 0
    assert float(row["megabytes_model"]) == pytest.approx(1.5, rel=0.2)
