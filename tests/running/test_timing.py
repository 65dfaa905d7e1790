"""Timing calls: in turns, in blocks, for the seconds asked. A fake clock stands in for time."""

import pytest
import torch

from hypercompress.running.timing import BLOCKS, LEAST_BLOCKS, WARM_UPS, Timing, interleaved, threads
from tests.clock import FakeClock


def test_short_calls_share_blocks_that_take_turns() -> None:
    clock = FakeClock()
    fast, slow = interleaved([clock.task("a", 0.001), clock.task("b", 0.004)], 0.004 * BLOCKS, clock=clock)
    assert clock.done == WARM_UPS * "a" + WARM_UPS * "b" + BLOCKS * "aaaab"
    assert (fast.ms, slow.ms) == (pytest.approx(1), pytest.approx(4))
    assert len(fast.blocks) == len(slow.blocks) == BLOCKS


def test_long_calls_take_turns_one_by_one() -> None:
    clock = FakeClock()
    timings = interleaved([clock.task("a", 3.0), clock.task("b", 5.0)], 1.0, clock=clock)
    assert clock.done == WARM_UPS * "a" + WARM_UPS * "b" + LEAST_BLOCKS * "ab"
    assert [timing.ms for timing in timings] == [3000, 5000]


def test_each_call_is_measured_for_the_seconds_asked() -> None:
    clock = FakeClock()
    jumpy = iter([0.01, 0.01, 0.01])  # faster after the warm-up: more blocks make up for it

    def call() -> None:
        clock.now += next(jumpy, 0.001)

    (timing,) = interleaved([call], 2.0, clock=clock)
    assert len(timing.blocks) > BLOCKS
    assert timing.ms == pytest.approx(1)
    assert clock.now >= 2.0


def test_a_machine_that_slows_down_slows_both_down() -> None:
    clock = FakeClock()
    one, two = clock.task("a", 0.001), clock.task("b", 0.002)

    def slower() -> None:
        clock.slowness *= 1.01
        one()

    fast, slow = interleaved([slower, two], 0.2, clock=clock)
    assert slow.ms / fast.ms == pytest.approx(2, rel=0.1)
    assert fast.blocks[-1] > 1.5 * fast.blocks[0]


def test_a_block_ends_when_the_device_is_done() -> None:
    clock, queue = FakeClock(), [0]

    def enqueue() -> None:
        queue[0] += 1

    def wait() -> None:
        clock.now += 0.001 * queue[0]
        queue[0] = 0

    (timing,) = interleaved([enqueue], 0.1, wait=wait, clock=clock)
    assert timing.blocks == pytest.approx([1.0] * BLOCKS)


def test_median_and_quartiles() -> None:
    timing = Timing((5.0, 1.0, 2.0, 4.0, 3.0))
    assert (timing.ms, timing.quartiles) == (3, (2, 4))


@pytest.mark.parametrize("fails", [False, True])
def test_threads_come_back(monkeypatch: pytest.MonkeyPatch, fails: bool) -> None:
    calls: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", calls.append)
    before = torch.get_num_threads()
    try:
        with threads(7):
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert calls == [7, before]
