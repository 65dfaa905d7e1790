"""The randomized decomposition beside the exact one."""

import csv
from pathlib import Path

import torch

from benchmarks import decomposition
from benchmarks.decomposition import compare
from hypercompress.specs import Side


def test_errors_are_measured_from_the_best_of_the_rank() -> None:
    """A matrix of low rank is found by both; one with a flat spectrum by the exact one alone."""
    generator = torch.Generator().manual_seed(0)
    flat = torch.randn(60, 90, generator=generator)
    low = torch.randn(60, 8, generator=generator) @ torch.randn(8, 90, generator=generator)
    torch.manual_seed(0)
    assert compare([(flat, Side.OUTPUT)], 0.25)["excess_error_max"] > 1e-3  # rank 9
    assert compare([(flat.mT.contiguous(), Side.INPUT)], 0.25)["excess_error_max"] > 1e-3
    noisy = low + 1e-3 * flat
    found = compare([(noisy, Side.OUTPUT), (noisy, Side.OUTPUT)], 0.25)
    assert -1e-3 < found["excess_error_mean"] <= found["excess_error_max"] < 0.1
    best = torch.linalg.svdvals(noisy.double())[9:].norm()
    torch.testing.assert_close((decomposition.truncated(noisy, Side.OUTPUT)(9) - noisy).norm(), best)


def test_a_row_for_each_share(tmp_path: Path) -> None:
    decomposition.main(["--models", "test_resnet", "--out", str(tmp_path)])
    with (tmp_path / "decomposition.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["share"]) for row in rows] == list(decomposition.SHARES)
    assert {row["trained"] for row in rows} == {"False"}
    assert all(float(row["seconds_exact"]) > 0 < float(row["seconds_randomized"]) for row in rows)
