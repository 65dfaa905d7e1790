"""Calls timed in turns, so that whatever slows the machine down meets all of them."""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

WARM_UPS = 3  # calls before anything counts: the first ones allocate, choose kernels and fill caches
BLOCKS = 20  # blocks that a measurement is cut into where calls are short
LEAST_BLOCKS = 5  # and where they are long: fewer have no quartiles worth the name

Clock = Callable[[], float]


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call, as each block of calls found them."""

    blocks: tuple[float, ...]

    @property
    def ms(self) -> float:
        return statistics.median(self.blocks)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The middle half of the blocks lies between these."""
        low, _, high = statistics.quantiles(self.blocks, n=4, method="inclusive")
        return low, high


def interleaved(
    calls: Sequence[Callable[[], object]],
    seconds: float,
    *,
    wait: Callable[[], object] = lambda: None,
    clock: Clock = time.perf_counter,
) -> list[Timing]:
    """Time several calls in short blocks that take turns: A B A B ...

    Args:
        calls: what to run; each as often as fits into one of `BLOCKS` blocks.
        seconds: measured time of each call, at least; warm-up aside.
        wait: returns when the device has done what it was told.
        clock: seconds, as `time.perf_counter`.

    Returns:
        the timing of each call, in their order.
    """

    def block(call: Callable[[], object], count: int) -> float:
        wait()
        start = clock()
        for _ in range(count):
            call()
        wait()
        return clock() - start

    once = [min(block(call, 1) for _ in range(WARM_UPS)) for call in calls]
    counts = [max(1, round(seconds / BLOCKS / max(shortest, 1e-9))) for shortest in once]
    times: list[list[float]] = [[] for _ in calls]
    while len(times[0]) < LEAST_BLOCKS or min(map(sum, times)) < seconds:
        for call, count, found in zip(calls, counts, times, strict=True):
            found.append(block(call, count))
    return [Timing(tuple(1e3 * took / count for took in found)) for found, count in zip(times, counts, strict=True)]


def waiting(device: torch.device) -> Callable[[], None]:
    """A call that returns when the device, whatever accelerator it is, has done what it was told."""

    def wait() -> None:
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    return wait


@contextmanager
def threads(count: int | None) -> Iterator[int]:
    """torch computes with ``count`` threads inside the block (``None``: no change); gives how many they are."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
