"""The learning rates of the tuned baselines: one grid for all, chosen on another data set than the table's."""

from collections.abc import Sequence

import torch

from benchmarks.backbones import Backbone
from benchmarks.common import Results, say
from benchmarks.intervals import block
from benchmarks.tuning import RATES, tune
from hypercompress.data import Pool, sample_episode

RATES_CSV = "transfer_rates.csv"
RATES_KEY = ("backbone", "method", "rate", "steps")
RATES_MADE_OF = ("weights", "data", "episodes")
SHOTS, WAYS, QUERIES = (1, 4), 5, 5  # episodes have the two numbers of shots in turn


def choose_rates(
    backbone: Backbone, last: str, method: str, steps: Sequence[int], episodes: int, results: Results
) -> dict[int, float]:
    """The rate with the best mean accuracy on the backbone's validation set, for each number of steps.

    Args:
        last: see `counting`.
        episodes: that a rate is tried on.
        results: what is known; what is missing is added.
    """
    for rate in RATES:
        keys = {s: _key(backbone, method, rate, s, episodes) for s in steps}
        missing = [s for s in steps if not results.has(keys[s])]
        if not missing:
            continue
        pool = validation_pool(backbone)
        runs = []
        for index in range(episodes):
            generator = torch.Generator().manual_seed(index)
            episode = sample_episode(pool, WAYS, SHOTS[index % len(SHOTS)], QUERIES, generator)
            runs.append(tune(backbone, last, episode, method, rate, missing, seed=index))
        for s in missing:
            right, deviation = block([run[s].accuracy for run in runs])
            results.add({**keys[s], "accuracy": right, "accuracy_deviation": deviation})
            say(f"rates: {backbone.name}, {method}, {rate:g}, {s} steps: {100 * right:.1f} %")
    return {s: max(RATES, key=lambda rate: _accuracy(results, backbone, method, rate, s)) for s in steps}


def validation_pool(backbone: Backbone) -> Pool:
    """The classes of the validation set that can fill an episode."""
    return backbone.pool(backbone.validation, backbone.limit).at_least(max(SHOTS) + QUERIES)


def _key(backbone: Backbone, method: str, rate: float, steps: int, episodes: int) -> dict[str, object]:
    made = {"weights": backbone.weights, "data": backbone.validation, "episodes": episodes}
    return {"backbone": backbone.name, "method": method, "rate": rate, "steps": steps, **made}


def _accuracy(results: Results, backbone: Backbone, method: str, rate: float, steps: int) -> float:
    (found,) = results.numbers("accuracy", backbone=backbone.name, method=method, rate=rate, steps=steps)
    return found
