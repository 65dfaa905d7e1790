"""Means over episodes and their 95 % intervals, from blocks of episodes."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

CONFIDENCE = 0.95
BLOCKS = 5  # fewest that a difference is told from


@dataclass(frozen=True)
class Estimate:
    """A mean over independent episodes.

    Args:
        count: episodes.
        mean: over them.
        interval: half the width of the 95 % interval; infinite for one episode.
    """

    count: int
    mean: float
    interval: float

    def __str__(self) -> str:
        """In percentage points."""
        return f"{100 * self.mean:.1f} ± {100 * self.interval:.1f}"


def block(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation of a block; 0 for one episode."""
    return fmean(values), stdev(values) if len(values) > 1 else 0.0


def combine(rows: Iterable[Mapping[str, str]], column: str) -> Estimate:
    """The mean over all episodes of some blocks, as if they had been one.

    Args:
        rows: with ``episodes``, the column and its deviation ``{column}_deviation``.
    """
    blocks = [(int(r["episodes"]), float(r[column]), float(r[f"{column}_deviation"])) for r in rows]
    count = sum(n for n, _, _ in blocks)
    mean = sum(n * m for n, m, _ in blocks) / count
    if count < 2:
        return Estimate(count, mean, math.inf)
    squares = sum((n - 1) * s**2 + n * (m - mean) ** 2 for n, m, s in blocks)
    return Estimate(count, mean, student_t(count - 1) * math.sqrt(squares / (count - 1) / count))


def paired(ours: Iterable[Mapping[str, str]], others: Iterable[Mapping[str, str]], column: str) -> Estimate | None:
    """The mean difference of two methods on the same episodes, from the means of the blocks that both have.

    Args:
        ours, others: blocks with ``first``, ``episodes`` and the column.

    Returns:
        ``None`` for fewer than `BLOCKS`.
    """
    known = {(row["first"], row["episodes"]): float(row[column]) for row in others}
    both = [row for row in ours if (row["first"], row["episodes"]) in known]
    if len(both) < BLOCKS:
        return None
    gaps = [float(row[column]) - known[row["first"], row["episodes"]] for row in both]
    sizes = [int(row["episodes"]) for row in both]
    interval = student_t(len(gaps) - 1) * stdev(gaps) / math.sqrt(len(gaps))  # of blocks of about one size
    return Estimate(sum(sizes), fmean(gaps, sizes), interval)


def student_t(freedom: int, confidence: float = CONFIDENCE) -> float:
    """Two-sided quantile of Student's t: exact for 1 and 2 degrees of freedom, else the expansion about the normal
    quantile to the third order (Abramowitz and Stegun 1964, 26.7.5), within 1 % from 3 on.
    """
    p = (1 + confidence) / 2
    if freedom == 1:
        return math.tan(math.pi * (p - 0.5))
    if freedom == 2:
        return (2 * p - 1) / math.sqrt(2 * p * (1 - p))
    x, n = NormalDist().inv_cdf(p), float(freedom)
    third, fifth, seventh = x * x * x, x * x * x * x * x, x * x * x * x * x * x * x
    first = (third + x) / 4
    second = (5 * fifth + 16 * third + 3 * x) / 96
    last = (3 * seventh + 19 * fifth + 17 * third - 15 * x) / 384
    return x + first / n + second / (n * n) + last / (n * n * n)
