"""Intervals of the transfer benchmark: over blocks of episodes, alone and in pairs."""

import math
import statistics

import pytest
import torch

from benchmarks.few_shot.intervals import block, combine, paired, student_t
from benchmarks.transfer import blocks


def test_a_t_interval_covers_as_a_table_says() -> None:
    table = {1: 12.706, 2: 4.303, 3: 3.182, 5: 2.571, 9: 2.262, 29: 2.045, 599: 1.964}
    for freedom, quantile in table.items():
        assert student_t(freedom) == pytest.approx(quantile, rel=0.01)


def test_blocks_add_up_to_their_episodes() -> None:
    values = torch.rand(23, generator=torch.Generator().manual_seed(0)).double().tolist()
    rows = []
    for numbers in blocks(23, 10):
        mean, deviation = block([values[i] for i in numbers])
        rows.append({"episodes": str(len(numbers)), "accuracy": repr(mean), "accuracy_deviation": repr(deviation)})
    whole = combine(rows, "accuracy")
    assert [row["episodes"] for row in rows] == ["10", "10", "3"]
    assert whole.count == 23
    assert whole.mean == pytest.approx(statistics.fmean(values))
    assert whole.interval == pytest.approx(student_t(22) * statistics.stdev(values) / math.sqrt(23))
    assert combine(rows[:1], "accuracy").interval > 0
    assert combine([{"episodes": "1", "accuracy": "1", "accuracy_deviation": "0"}], "accuracy").interval == math.inf


def test_differences_are_of_the_blocks_that_both_have() -> None:
    def rows(*shares: float, start: int = 0) -> list[dict[str, str]]:
        numbers = enumerate(shares, start)
        return [{"first": str(10 * place), "episodes": "10", "accuracy": str(share)} for place, share in numbers]

    ours = rows(0.5, 0.6, 0.7, 0.8, 0.9, 0.4)
    found = paired(ours, rows(0.4, 0.4, 0.4, 0.4, 0.4), "accuracy")
    assert found is not None
    assert (found.count, found.mean) == (50, pytest.approx(0.3))
    assert found.interval == pytest.approx(
        2.776 * statistics.stdev((0.1, 0.2, 0.3, 0.4, 0.5)) / 5**0.5, rel=1e-2
    )  # t of 4
    assert paired(ours, rows(0.1, 0.1, 0.1, 0.1, 0.1, start=3), "accuracy") is None  # three blocks in common
    same = paired(ours, ours, "accuracy")
    assert same is not None
    assert (same.mean, same.interval) == (0, 0)
