"""Fast transfer against every baseline: few labelled images of a new task, three backbones.

    python -m benchmarks.transfer [--assets ASSETS] [--backbones ...] [--methods ...] [--shots ...] [--steps ...]
        [--episodes 600] [--episodes-tuned 600] [--data DATA ...] [--teacher FOLDER] [--out benchmarks/results]

Episodes of 5 classes and 10 query images of each, the same for all methods. ``ncm`` (nearest class mean), ``ridge``:
closed-form heads on frozen features, no steps. ``probe``, ``norm``, ``lora``, ``full``: the ridge head, then AdamW
steps on it and on nothing else, the norms' scales and shifts, rank-4 adapters, everything. ``adapt``: ours, what the
transfer network generates and then its own steps; ``adapt-plain``: the same without the network. Each with the images
that passed through the backbone, counted, as a multiple of the support set.

The rates of the tuned baselines are chosen once for each backbone and number of steps, from one grid, on episodes of
another data set (``transfer_rates.csv``). Backbones: ``lite0``, EfficientNet-Lite0 with ImageNet weights;
``lite0-0.7``, its student of 0.7 times the parameters, calibrated on the photographs of ``train`` without their labels;
``fashion``, a network trained on Fashion-MNIST. Photographs: both parts, classes that can fill an episode of the most
shots.

Writes ``transfer.csv``, a row for each block of episodes, and ``transfer.png``; blocks that are there are not made
again, so it can be run in pieces. On one CPU core the closed-form heads take minutes, a tuned episode of ``fashion`` a
second and one of ``lite0`` minutes: fewer episodes (``--episodes-tuned``) then have wider intervals, which the table
shows.
"""

import argparse
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.adapted import ADAPTED, adapt_episode, network_digest, steps_of
from benchmarks.backbones import BACKBONES, TEACHER, Backbone, check_assets, frozen_features, open_backbone
from benchmarks.common import RESULTS, Results, say
from benchmarks.frozen import FROZEN, answer
from benchmarks.intervals import block
from benchmarks.passes import counting, last_layer
from benchmarks.rates import RATES_CSV, RATES_KEY, RATES_MADE_OF, choose_rates
from benchmarks.transfer_table import figure, tables
from benchmarks.tuning import TUNED, Outcome, accuracy, tune
from hypercompress.data.episodes import Places, Pool, draw_places, episode_at

METHODS = (*FROZEN, *TUNED, *ADAPTED)
SHOTS = (1, 2, 4, 8, 16)
STEPS = (0, 10, 50, 200)
WAYS, QUERIES = 5, 10
BLOCK, BLOCK_TUNED = 100, 10  # episodes of a row
KEY = ("backbone", "data", "method", "shots", "steps", "first")
MADE_OF = ("weights", "rate", "episodes", "ways", "queries")


@dataclass(frozen=True)
class Trial:
    """A backbone on a data set: what all methods share.

    Args:
        backbone: the network.
        data: name of the data set.
        pool: its images; every class can fill an episode of the most shots, so that all shots have the same classes.
        last: see `counting`.
    """

    backbone: Backbone
    data: str
    pool: Pool
    last: str
    _features: list[Tensor] = field(default_factory=list, repr=False)
    _ridge: dict[tuple[int, int], float] = field(default_factory=dict, repr=False)

    @property
    def ways(self) -> int:
        """Classes of an episode."""
        return min(WAYS, len(self.pool.classes))

    @property
    def features(self) -> Tensor:
        """Features of the whole pool [n, d] under the frozen backbone, computed once: all episodes share them."""
        if not self._features:
            self._features.append(frozen_features(self.backbone.model, self.pool.images))
        return self._features[0]

    def places(self, shots: int, index: int) -> Places:
        """Episode number ``index``, the same for every method and backbone."""
        generator = torch.Generator().manual_seed(1_000_003 * shots + index)
        return draw_places(self.pool, self.ways, shots, QUERIES, generator)

    def frozen(self, method: str, places: Places) -> float:
        """Accuracy of a closed-form head, from the features that are known."""
        support, query = self.features[places.support], self.features[places.query]
        logits = answer(method, support, places.support_labels, query, len(places.classes))
        return accuracy(logits, places.query_labels)

    def ridge(self, shots: int, numbers: Iterable[int]) -> list[float]:
        """Accuracy of ridge regression on these episodes, which all methods are compared with."""
        for index in numbers:
            if (shots, index) not in self._ridge:
                self._ridge[shots, index] = self.frozen("ridge", self.places(shots, index))
        return [self._ridge[shots, index] for index in numbers]

    def measured(self, method: str, places: Places) -> Outcome:
        """The same with nothing known beforehand: what it costs."""
        episode, query, start = episode_at(self.pool, places), self.features[places.query], time.perf_counter()
        with counting(self.backbone.model, self.last) as passes:
            support = frozen_features(self.backbone.model, episode.support)
            right = accuracy(
                answer(method, support, episode.support_labels, query, len(episode.classes)), episode.query_labels
            )
        images = len(support)
        return Outcome(right, passes.forward / images, passes.backward / images, time.perf_counter() - start)


def open_trials(backbone: Backbone, shots: int) -> Iterator[Trial]:
    """The backbone on each of its data sets, for episodes of at most so many shots."""
    for data, text in backbone.data.items():
        pool = backbone.pool(text).at_least(shots + QUERIES)
        yield Trial(backbone, data, pool, last_layer(backbone.model, pool.images[:2]))


def blocks(count: int, size: int) -> Iterator[range]:
    """Numbers of episodes, block after block; the last one may be shorter."""
    for first in range(0, count, size):
        yield range(first, min(first + size, count))


def row_of(outcomes: Sequence[Outcome], ridge: Sequence[float]) -> dict[str, Any]:
    """The columns of a block: accuracy, its gain over ridge on the same episodes, cost."""
    right, right_deviation = block([outcome.accuracy for outcome in outcomes])
    gain, gain_deviation = block([o.accuracy - other for o, other in zip(outcomes, ridge, strict=True)])
    return {
        "accuracy": right,
        "accuracy_deviation": right_deviation,
        "gain": gain,
        "gain_deviation": gain_deviation,
        **{name: block([getattr(o, name) for o in outcomes])[0] for name in ("forward", "backward", "seconds")},
    }


def run_frozen(trial: Trial, method: str, shots: int, episodes: int, results: Results) -> None:
    """All blocks of a closed-form head that are missing; its cost is that of the first episode of each block."""
    for numbers in blocks(episodes, BLOCK):
        key = _key(trial, method, shots, numbers, steps=0, rate=None)
        if results.has(key):
            continue
        places = [trial.places(shots, index) for index in numbers]
        cost = trial.measured(method, places[0])
        ridge = trial.ridge(shots, numbers)
        right = ridge if method == "ridge" else [trial.frozen(method, p) for p in places]
        found = [Outcome(share, cost.forward, cost.backward, cost.seconds) for share in right]
        _add(results, {**key, **row_of(found, ridge)})


def run_tuned(
    trial: Trial, method: str, shots: int, episodes: int, rates: Mapping[int, float], results: Results
) -> None:
    """All blocks of a tuned baseline that are missing; numbers of steps with one rate share a run.

    Args:
        rates: by number of steps.
    """
    for numbers in blocks(episodes, BLOCK_TUNED):
        keys = {s: _key(trial, method, shots, numbers, steps=s, rate=rate) for s, rate in rates.items()}
        for rate in sorted(set(rates.values())):
            steps = [s for s in rates if rates[s] == rate and not results.has(keys[s])]
            if not steps:
                continue
            places = [trial.places(shots, index) for index in numbers]
            runs = [
                tune(trial.backbone, trial.last, episode_at(trial.pool, p), method, rate, steps, seed=index)
                for index, p in zip(numbers, places, strict=True)
            ]
            for s in steps:
                _add(results, {**keys[s], **row_of([run[s] for run in runs], trial.ridge(shots, numbers))})


def run_adapted(
    trial: Trial, method: str, shots: int, episodes: int, steps: int, network: str, results: Results
) -> None:
    """All blocks of ours that are missing.

    Args:
        network: ``auto`` for the released one, or a folder.
    """
    for numbers in blocks(episodes, BLOCK_TUNED if steps else BLOCK):
        key = _key(trial, method, shots, numbers, steps=steps, rate=None)
        key["weights"] += network_digest(method, network)
        if results.has(key):
            continue
        episodes_ = [episode_at(trial.pool, trial.places(shots, index)) for index in numbers]
        found = [
            adapt_episode(trial.backbone, trial.last, episode, method, steps, network, seed=index)
            for index, episode in zip(numbers, episodes_, strict=True)
        ]
        _add(results, {**key, **row_of(found, trial.ridge(shots, numbers))})


def run(backbone: Backbone, options: argparse.Namespace) -> None:
    """All rows of a backbone that are missing, cheap ones first."""
    results = Results(options.out / "transfer.csv", KEY, MADE_OF)
    rates = Results(options.out / RATES_CSV, RATES_KEY, RATES_MADE_OF)
    steps = [s for s in options.steps if s]
    for trial in open_trials(backbone, max(SHOTS)):
        for shots in options.shots:
            for method in (m for m in FROZEN if m in options.methods and 0 in options.steps):
                run_frozen(trial, method, shots, options.episodes, results)
        for method in (m for m in ADAPTED if m in options.methods):
            for count, shots in product(steps_of(method, options.network, options.steps), options.shots):
                episodes = options.episodes_tuned if count else options.episodes
                run_adapted(trial, method, shots, episodes, count, options.network, results)
        for method in (m for m in TUNED if m in options.methods and steps):
            chosen = choose_rates(backbone, trial.last, method, steps, options.episodes_rates, rates)
            for shots in options.shots:
                run_tuned(trial, method, shots, options.episodes_tuned, chosen, results)


def _key(trial: Trial, method: str, shots: int, numbers: range, *, steps: int, rate: float | None) -> dict[str, Any]:
    return {
        "backbone": trial.backbone.name,
        "data": trial.data,
        "method": method,
        "shots": shots,
        "steps": steps,
        "first": numbers.start,
        "weights": trial.backbone.weights,
        "rate": rate,
        "episodes": len(numbers),
        "ways": trial.ways,
        "queries": QUERIES,
    }


def _add(results: Results, row: Mapping[str, Any]) -> None:
    results.add(row)
    say(
        f"{row['backbone']} on {row['data']}, {row['method']}, {row['shots']} shots, {row['steps']} steps, episodes "
        f"from {row['first']}: {100 * row['accuracy']:.1f} % ({100 * row['gain']:+.1f})"
    )


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, help="folder with the weights of EfficientNet-Lite0 and photos/")
    parser.add_argument("--teacher", type=Path, default=TEACHER, help="Fashion-MNIST network (default: the packaged)")
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument("--data", nargs="+", default=[], help="judge on these DATA instead")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--shots", nargs="+", type=int, choices=SHOTS, default=list(SHOTS))
    parser.add_argument("--steps", nargs="+", type=int, choices=STEPS, default=list(STEPS))
    parser.add_argument("--episodes", type=int, default=600, help="without steps (default: 600)")
    parser.add_argument("--episodes-tuned", type=int, default=600, help="with steps (default: 600)")
    parser.add_argument("--episodes-rates", type=int, default=20, help="that choose a rate (default: 20)")
    parser.add_argument("--network", default="auto", help="folder of a transfer network (default: the released one)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the files go (default: benchmarks/results)")
    options = parser.parse_args(words)
    check_assets(options.backbones, options.assets)
    for name in options.backbones:
        run(open_backbone(name, options.assets, options.teacher, options.data), options)
    results = Results(options.out / "transfer.csv", KEY, MADE_OF)
    figure(results, options.out / "transfer.png")
    say(tables(results))


if __name__ == "__main__":
    main()
