"""The learning rates of what takes steps: one grid for all, chosen on another data set than the table's."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import torch

from benchmarks.few_shot.adapted import network_digest
from benchmarks.few_shot.backbones import Backbone
from benchmarks.few_shot.intervals import block
from benchmarks.few_shot.solving import Solving
from benchmarks.few_shot.tuning import RATES, Outcome
from benchmarks.shared.common import Results, say
from hypercompress.data import Pool, sample_episode

RATES_CSV = "transfer_rates.csv"
RATES_KEY = ("backbone", "method", "rate", "steps")
RATES_MADE_OF = ("weights", "data", "episodes")
SHOTS, WAYS, QUERIES = (1, 4), 5, 5  # episodes have the two numbers of shots in turn


def choose_rates(
    backbone: Backbone,
    last: str,
    method: str,
    steps: Sequence[int],
    episodes: int,
    results: Results,
    solving: Solving | None = None,
) -> dict[int, float]:
    """The rate with the best mean accuracy on the backbone's validation set, for each number of steps.

    Args:
        last: see `counting`.
        episodes: that a rate is tried on; more, if one of the same grid has been: rates are compared on the same.
        results: what is known; what is missing is added.
        solving: how episodes are run; all of it is done here, whatever it says of other processes.
    """
    try_rates(backbone, last, method, steps, episodes, results, replace(solving or Solving(), claims=None))
    return {s: max(RATES, key=lambda rate: _accuracy(results, backbone, method, rate, s)) for s in steps}


def try_rates(
    backbone: Backbone,
    last: str,
    method: str,
    steps: Sequence[int],
    episodes: int,
    results: Results,
    solving: Solving,
) -> None:
    """Add the rows of the grid that are missing and ours to make; arguments as in `choose_rates`."""
    weights = backbone.weights + network_digest(method, solving.network)
    counts = {s: max([episodes, *_tried(results, backbone, method, s, weights)]) for s in steps}
    for rate, count in product(RATES, sorted(set(counts.values()))):
        keys = {s: _key(backbone, method, rate, s, count, weights) for s in steps if counts[s] == count}
        missing = [s for s in keys if not results.has(keys[s])]
        if not missing or not solving.take("rates", backbone.name, method, rate, *missing):
            continue
        pool, runs = validation_pool(backbone), list[dict[int, Outcome]]()
        for part, shots in enumerate(SHOTS):  # a stack holds episodes of one size
            numbers = range(part, count, len(SHOTS))
            drawn = [
                sample_episode(pool, WAYS, shots, QUERIES, torch.Generator().manual_seed(index)).to(backbone.device)
                for index in numbers
            ]
            runs += solving.solve(backbone, last, drawn, method, rate, missing, numbers) if drawn else []
        for s in missing:
            right, deviation = block([run[s].accuracy for run in runs])
            results.add({**keys[s], "accuracy": right, "accuracy_deviation": deviation})
            say(f"rates: {backbone.name}, {method}, {rate:g}, {s} steps: {100 * right:.1f} %")


def validation_pool(backbone: Backbone) -> Pool:
    """The classes of the validation set that can fill an episode."""
    return backbone.pool(backbone.validation, backbone.limit).at_least(max(SHOTS) + QUERIES)


def _key(backbone: Backbone, method: str, rate: float, steps: int, episodes: int, weights: str) -> dict[str, object]:
    made = {"weights": weights, "data": backbone.validation, "episodes": episodes}
    return {"backbone": backbone.name, "method": method, "rate": rate, "steps": steps, **made}


def _tried(results: Results, backbone: Backbone, method: str, steps: int, weights: str) -> list[int]:
    """Numbers of episodes that rates of a grid were tried on."""
    grid = {"backbone": backbone.name, "data": backbone.validation, "weights": weights}
    return [int(count) for count in results.numbers("episodes", **grid, method=method, steps=steps)]


def _accuracy(results: Results, backbone: Backbone, method: str, rate: float, steps: int) -> float:
    (found,) = results.numbers("accuracy", backbone=backbone.name, method=method, rate=rate, steps=steps)
    return found
