"""What images add to a generation, on a network small enough for seconds."""

import csv
from pathlib import Path

import pytest

from benchmarks import data_cost


def test_a_row_with_times_in_passes_and_memory(tmp_path: Path) -> None:
    data_cost.main(["--models", "test_vit2", "--images", "64", "--batch-size", "16", "--out", str(tmp_path)])
    with (tmp_path / "data_cost.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["images"], row["batch_size"]) == ("64", "16")
    plain, curvature, with_, without = (
        float(row[f"seconds_{name}"]) for name in ("plain", "curvature", "with", "without")
    )
    assert float(row["added_passes"]) == pytest.approx((with_ - without) / plain, rel=1e-4)
    assert float(row["curvature_passes"]) == pytest.approx(curvature / plain, rel=1e-4)
    assert float(row["megabytes"]) >= float(row["megabytes_model"]) > 0.1
