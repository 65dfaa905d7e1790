"""A row of the benchmark: its settings, its numbers, and the ratios between them."""

import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypercompress.benchmark import Settings, compare_models
from hypercompress.errors import BenchmarkError
from tests.benchmarked import CONTRACT, images
from tests.clock import FakeClock

SHORT = Settings(seconds=0.01)


class Ticking(nn.Module):
    """Takes so many seconds of a fake clock for each call, and notes in what state it was called."""

    def __init__(self, inner: nn.Module, seconds: float, clock: FakeClock) -> None:
        super().__init__()
        self.inner, self.tick = inner, clock.task("", seconds)
        self.seen: set[tuple[bool, bool, int]] = set()

    def forward(self, x: Tensor) -> Tensor:
        self.tick()
        if torch.is_inference_mode_enabled():
            self.seen.add((self.training, x.requires_grad, torch.get_num_threads()))
        return self.inner(x)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ({"seconds": 0.0}, "received 0 seconds"),
        ({"seconds": float("nan")}, "received nan seconds"),
        ({"seconds": 1e6}, "at most 3600"),
        ({"threads": 0}, "received 0 threads"),
        ({"threads": 10**6}, f"from 1 to {os.cpu_count()}"),
    ],
)
def test_settings_out_of_range(values: dict[str, Any], part: str) -> None:
    with pytest.raises(BenchmarkError, match=part):
        Settings(**values)


def test_the_numbers_of_a_row() -> None:
    clock = FakeClock()
    teacher = Ticking(nn.Linear(8, 8), 0.006, clock)
    small = Ticking(nn.Sequential(nn.Linear(8, 2, bias=False), nn.Linear(2, 8)), 0.002, clock)
    row = compare_models(teacher, small, torch.randn(5, 8), Settings(seconds=0.1, threads=1), clock=clock).as_json()
    assert set(row) > CONTRACT
    assert (row["batch_size"], row["threads"], row["device"], row["channels_last"]) == (5, 1, "cpu", False)
    assert (row["teacher_ms"], row["student_ms"]) == (pytest.approx(6), pytest.approx(2))
    assert row["teacher_ms_quartiles"] == pytest.approx([6, 6])
    assert (row["speedup"], row["macs_ratio"], row["efficiency"]) == (pytest.approx(3), 2, pytest.approx(1.5))
    # Time counts in evaluation mode, without gradients, with the threads asked for; the flags come back.
    assert teacher.seen == small.seen == {(False, False, 1)}
    assert teacher.training


def test_without_multiply_accumulates_there_is_no_ratio() -> None:
    row = compare_models(nn.ReLU(), nn.Hardswish(), torch.randn(2, 4), SHORT).as_json()
    assert row["macs_ratio"] != row["macs_ratio"]
    assert row["speedup"] == row["teacher_ms"] / row["student_ms"]


def test_channels_last_reaches_images_and_weights() -> None:
    seen = []

    class Convolution(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            if torch.is_inference_mode_enabled():
                seen.append([t.is_contiguous(memory_format=torch.channels_last) for t in (x, self.weight)])
            return super().forward(x)

    models = Convolution(3, 4, 3), Convolution(3, 4, 3)
    row = compare_models(*models, images(), Settings(seconds=0.001, channels_last=True)).as_json()
    assert row["channels_last"]
    assert seen
    assert all(map(all, seen))
    with pytest.raises(BenchmarkError, match=r"inputs of \[2, 8\]"):
        compare_models(nn.Linear(8, 8), nn.Linear(8, 8), torch.randn(2, 8), Settings(channels_last=True))
