"""Fast transfer against every baseline: few labelled images of a new task, three backbones.

    python -m benchmarks.transfer [--assets ASSETS] [--backbones ...] [--methods ...] [--shots ...] [--steps ...]
        [--episodes 600] [--episodes-tuned 600] [--data DATA ...] [--teacher FOLDER] [--out benchmarks/results]
        [--device cpu|cuda] [--stack IMAGES] [--claims FOLDER] [--only-rates]
        [--rate RATE [--cosine]]
    python -m benchmarks.transfer --merge FOLDER ... [--out benchmarks/results]

Episodes of 5 classes and 10 query images of each, the same for all methods. ``ncm`` (nearest class mean), ``ridge``:
closed-form heads on frozen features, no steps; ``pixels``: ridge regression on the images. ``probe``, ``norm``,
``lora``, ``full``: the ridge head, then AdamW steps on it and on nothing else, the norms' scales and shifts, rank-4
adapters, everything. ``adapt``: ours, what the transfer network generates and then its own steps on norms, biases and
the head; ``adapt-all``: on everything; ``adapt-plain``: ``adapt`` without the network. With ``-views`` the same on
random views of the images, the baselines in their steps, ours in the head too; ``ridge-views`` is ours without the
network and without steps. Of ours only two may read levels, the maps of all stages: ``adapt-levels``, without views or
steps, and ``adapt-default-views``, which is what users have: all defaults of `adapt`, with steps on everything at the
rate that it finds, followed as far as it finds right. Each with the images that passed through the backbone, counted,
as a multiple of the support set.

The rates of all other methods that take steps are chosen once for each backbone and number of steps, from one grid, on
episodes of another data set (``transfer_rates.csv``). The baselines keep theirs constant, ours goes up and down; with
``--rate 0.01 --cosine`` theirs does too (write such rows to an ``--out`` of their own).

Backbones: ``lite0``, EfficientNet-Lite0 with ImageNet weights; ``lite0-0.7``, its student of 0.7 times the parameters,
calibrated on the photographs of ``train`` without their labels; ``fashion``, a network trained on Fashion-MNIST; and,
if asked for, ``lite1``, EfficientNet-Lite1, on which nothing was chosen (`benchmarks.lite_weights`). Photographs: both
parts, classes that can fill an episode of the most shots.

Writes ``transfer.csv``, a row for each block of episodes, and ``transfer.png``; blocks that are there are not made
again, nor for fewer episodes, so it can be run in pieces. On one CPU core the closed-form heads take minutes, a tuned
episode of ``fashion`` a second and one of ``lite0`` minutes: fewer episodes (``--episodes-tuned``) then have wider
intervals, which the table shows. On a card tune episodes in stacks (``--stack``) and by several processes, each with an
``--out`` of its own and all with one folder for ``--claims``; then ``--merge``. Such rows have no seconds.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.few_shot.adapted import ADAPTED, DEFAULT, LEVELS, network_digest, steps_of
from benchmarks.few_shot.backbones import BACKBONES, TEACHER, USUAL, Backbone, check_assets, open_backbone
from benchmarks.few_shot.frozen import FROZEN
from benchmarks.few_shot.intervals import block
from benchmarks.few_shot.rates import RATES_CSV, RATES_KEY, RATES_MADE_OF, choose_rates, try_rates
from benchmarks.few_shot.solving import Solving
from benchmarks.few_shot.transfer_table import figure, tables
from benchmarks.few_shot.trial import QUERIES, Trial, open_trials
from benchmarks.few_shot.tuning import TUNED, Outcome
from benchmarks.shared.common import RESULTS, Results, say
from hypercompress.transfer.rates import CANDIDATES
from hypercompress.transfer.tuning import Tuned

METHODS = (*FROZEN, *TUNED, *ADAPTED)
SHOTS = (1, 2, 4, 8, 16)
STEPS = (0, 10, 50, 200)
BLOCK, BLOCK_TUNED = 100, 10  # episodes of a row
CSV = "transfer.csv"
KEY = ("backbone", "data", "method", "shots", "steps", "first")
MADE_OF = ("weights", "rate", "episodes", "ways", "queries")
COUNTED = "episodes"  # of MADE_OF and of RATES_MADE_OF: a row of more of them is there for a run of fewer
TRIED = "/".join(f"{rate:g}" for rate in CANDIDATES[Tuned.ALL])  # the cell of those that find their rate
SOLVING = Solving()


def blocks(count: int, size: int) -> Iterator[range]:
    """Numbers of episodes, block after block; the last one may be shorter."""
    for first in range(0, count, size):
        yield range(first, min(first + size, count))


def row_of(outcomes: Sequence[Outcome], ridge: Sequence[float]) -> dict[str, Any]:
    """The columns of a block: accuracy, its gain over ridge on the same episodes, cost."""
    right, right_deviation = block([outcome.accuracy for outcome in outcomes])
    gain, gain_deviation = block([o.accuracy - other for o, other in zip(outcomes, ridge, strict=True)])
    seconds = [outcome.seconds for outcome in outcomes if outcome.seconds is not None]
    return {
        "accuracy": right,
        "accuracy_deviation": right_deviation,
        "gain": gain,
        "gain_deviation": gain_deviation,
        **{name: block([getattr(o, name) for o in outcomes])[0] for name in ("forward", "backward")},
        "seconds": block(seconds)[0] if len(seconds) == len(outcomes) else None,
    }


def run_frozen(
    trial: Trial, method: str, shots: int, episodes: int, results: Results, solving: Solving = SOLVING
) -> None:
    """All blocks of a closed-form head that are missing; its cost is that of the first episode of each block."""
    for numbers in blocks(episodes, BLOCK):
        key = _key(trial, method, shots, numbers, steps=0, rate=None)
        if results.has(key) or not solving.take(trial.backbone.name, trial.data, method, shots, numbers.start):
            continue
        places = [trial.places(shots, index) for index in numbers]
        cost = trial.measured(method, places[0])
        ridge = trial.ridge(shots, numbers)
        right = ridge if method == "ridge" else [trial.frozen(method, p) for p in places]
        seconds = cost.seconds if solving.alone else None
        found = [Outcome(share, cost.forward, cost.backward, seconds) for share in right]
        _add(results, {**key, **row_of(found, ridge)})


def run_steps(
    trial: Trial,
    method: str,
    shots: int,
    episodes: int,
    rates: Mapping[int, float | None],
    results: Results,
    solving: Solving = SOLVING,
) -> None:
    """All blocks of a tuned baseline, or of ours, that are missing; numbers of steps with one rate share a run.

    Args:
        rates: by number of steps, 0 among them only for ours; ``None`` without steps and where `adapt` finds it.
    """
    if method in LEVELS:
        solving = replace(solving, stack=0)  # heads differ in what they read, and the steps are those of `adapt`

    def key(numbers: range, steps: int) -> dict[str, Any]:
        rate: float | str | None = TRIED if method == DEFAULT else rates[steps]
        if solving.cosine and method in TUNED:
            rate = f"{rate:g} cosine"
        found = _key(trial, method, shots, numbers, steps=steps, rate=rate)
        return {**found, "weights": found["weights"] + network_digest(method, solving.network)}

    def missing(numbers: range, steps: int) -> bool:
        return not results.has(key(numbers, steps))

    waiting = [n for n in blocks(episodes, BLOCK_TUNED if any(rates) else BLOCK) if any(missing(n, s) for s in rates)]
    name = (trial.backbone.name, trial.data, method, shots, *rates)
    for group in solving.groups(waiting, trial.ways * shots, *name):
        for rate in dict.fromkeys(rates.values()):
            steps = [s for s in rates if rates[s] == rate and any(missing(n, s) for n in group)]
            if not steps:
                continue
            places = [index for numbers in group for index in numbers]
            drawn = [trial.episode(shots, index) for index in places]
            runs = solving.solve(trial.backbone, trial.last, drawn, method, rate, steps, places)
            found = dict(zip(places, runs, strict=True))
            for numbers in group:
                for s in (s for s in steps if missing(numbers, s)):
                    row = row_of([found[index][s] for index in numbers], trial.ridge(shots, numbers))
                    _add(results, {**key(numbers, s), **row})


def run(backbone: Backbone, options: argparse.Namespace) -> None:
    """All rows of a backbone that are missing, cheap ones first."""
    results, rates = _results(options.out)
    solving = Solving(options.network, options.stack, options.claims, options.cosine)
    steps = [s for s in options.steps if s]
    for trial in open_trials(backbone, max(SHOTS)):
        for shots in options.shots:
            for method in (m for m in FROZEN if m in options.methods and 0 in options.steps):
                run_frozen(trial, method, shots, options.episodes, results, solving)
        for method in (m for m in (*ADAPTED, *TUNED) if m in options.methods):
            counts = steps_of(method, options.network, options.steps) if method in ADAPTED else steps
            if 0 in counts:
                for shots in options.shots:
                    run_steps(trial, method, shots, options.episodes, {0: None}, results, solving)
            tuned = [count for count in counts if count]
            best: Mapping[int, float | None] = dict.fromkeys(tuned, options.rate)
            if method == DEFAULT:
                best = dict.fromkeys(tuned)
            elif options.rate is None:
                best = choose_rates(backbone, trial.last, method, tuned, options.episodes_rates, rates, solving)
            for shots in options.shots if tuned else ():
                run_steps(trial, method, shots, options.episodes_tuned, best, results, solving)


def run_rates(backbone: Backbone, options: argparse.Namespace) -> None:
    """The grid of rates alone."""
    _, rates = _results(options.out)
    solving, trial = Solving(options.network, options.stack, options.claims), next(open_trials(backbone, max(SHOTS)))
    for method in (m for m in (*TUNED, *ADAPTED) if m in options.methods and m != DEFAULT):
        steps = [s for s in options.steps if s]
        try_rates(backbone, trial.last, method, steps, options.episodes_rates, rates, solving)


def merge(folders: Sequence[Path], out: Path) -> None:
    """Join the tables of other runs with those in ``out``; of two rows of one key the later stays, unless it is made of
    the same but of fewer episodes.

    Raises:
        ValueError: a folder without any table of this program.
    """
    empty = [str(f) for f in folders if not any((f / name).is_file() for name in (CSV, RATES_CSV))]
    if empty:
        raise ValueError(
            f"received {', '.join(empty)} without {CSV} or {RATES_CSV}; expected folders that this program wrote; "
            "leave them out"
        )
    for results in _results(out):
        for path in (folder / results.path.name for folder in folders):
            if path.is_file():
                results.absorb(path)


def _results(out: Path) -> tuple[Results, Results]:
    """The rows and the rates."""
    return Results(out / CSV, KEY, MADE_OF, COUNTED), Results(out / RATES_CSV, RATES_KEY, RATES_MADE_OF, COUNTED)


def _key(
    trial: Trial, method: str, shots: int, numbers: range, *, steps: int, rate: float | str | None
) -> dict[str, Any]:
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
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=USUAL)
    parser.add_argument("--data", nargs="+", default=[], help="judge on these DATA instead")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--shots", nargs="+", type=int, choices=SHOTS, default=list(SHOTS))
    parser.add_argument("--steps", nargs="+", type=int, choices=STEPS, default=list(STEPS))
    parser.add_argument("--episodes", type=int, default=600, help="without steps (default: 600)")
    parser.add_argument("--episodes-tuned", type=int, default=600, help="with steps (default: 600)")
    parser.add_argument("--episodes-rates", type=int, default=20, help="that choose a rate (default: 20)")
    parser.add_argument("--network", default="auto", help="folder of a transfer network (default: the released one)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--stack", type=int, default=0, help="images of a step of stacked episodes (default: 0, none)")
    parser.add_argument("--claims", type=Path, help="folder shared by processes that divide the work")
    parser.add_argument("--only-rates", action="store_true", help="try the rates and nothing else")
    parser.add_argument("--rate", type=float, help="of all steps (default: chosen on another data set)")
    parser.add_argument("--cosine", action="store_true", help="let it go up and down as ours does, with --rate")
    parser.add_argument("--merge", nargs="+", type=Path, metavar="FOLDER", help="join the tables of these, run nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the files go (default: benchmarks/results)")
    options = parser.parse_args(words)
    if options.cosine and options.rate is None:
        parser.error("received --cosine without --rate; expected both, as rates are chosen for a constant one")
    if options.merge:
        merge(options.merge, options.out)
    else:
        check_assets(options.backbones, options.assets)
        for name in options.backbones:
            backbone = open_backbone(name, options.assets, options.teacher, options.data, options.device)
            (run_rates if options.only_rates else run)(backbone, options)
    if options.claims is None:  # a part of the rows is no table
        results, _ = _results(options.out)
        figure(results, options.out / "transfer.png")
        say(tables(results))


if __name__ == "__main__":
    main()
