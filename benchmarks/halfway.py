"""Steps of fast transfer: none, half of the way and all of it, by how near the task is.

    python -m benchmarks.halfway --data DATA [DATA ...] [--backbones fashion|lite0|FOLDER ...] [--assets ASSETS]
        [--shots 1 2 4 8] [--episodes 40] [--steps 50] [--tuned all|norms] [--rate RATE] [--out benchmarks/results]

Episodes of five classes and eight query images of each, drawn from the held-out images of DATA (of a folder with
``train`` and ``val`` from both), with `adapt`'s defaults but one rate for all tasks and no levels. Backbones: the
packaged Fashion-MNIST network, EfficientNet-Lite0 with its ImageNet weights (``--assets``), or student folders such as
a zoo's.
Writes ``halfway.csv``, a row an episode, and prints points of accuracy above the start with 95 % intervals, for each
backbone, DATA and number of images a class. One core: five seconds an episode of a small network, five minutes of
EfficientNet-Lite0 with four images a class.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

import torch
from torch import nn

from benchmarks.few_shot.backbones import BATCH, Backbone, fashion, open_backbone
from benchmarks.few_shot.intervals import BLOCKS, student_t
from benchmarks.few_shot.tuning import accuracy
from benchmarks.shared.common import RESULTS, Results, markdown, say
from hypercompress.data import Episode, Pool, sample_episode
from hypercompress.transfer import adapt
from hypercompress.transfer.nearness import nearness_of
from hypercompress.transfer.rates import CANDIDATES, HALF, go_back, share_of
from hypercompress.transfer.tuning import Tuned

KEY = ("backbone", "data", "tuned", "shots", "steps", "episode")
MADE_OF = ("weights", "rate")
WAYS, QUERIES = 5, 8
COLUMNS = {"start": 0.0, "half": HALF, "end": 1.0}


def run(backbone: Backbone, data: str, options: argparse.Namespace, results: Results) -> None:
    """All rows of a backbone and a data set that are missing, one episode of each number of images after the other."""
    made = {"backbone": backbone.name, "data": Path(data.partition(":")[0]).name, "weights": backbone.weights}
    wanted = [(index, shots) for index in range(options.episodes) for shots in options.shots]
    for index, shots in wanted:
        row = {**made, "tuned": options.tuned, "shots": shots, "steps": options.steps, "episode": index}
        row["rate"] = options.rate
        if not results.has(row):
            results.add(
                {**row, **followed(backbone.model, episode_of(backbone.pool(data), shots, index), options, index)}
            )


def episode_of(pool: Pool, shots: int, index: int) -> Episode:
    """Episode number ``index``, the same for every backbone."""
    generator = torch.Generator().manual_seed(1_000_003 * shots + index)
    return sample_episode(pool.at_least(shots + QUERIES), WAYS, shots, QUERIES, generator)


def followed(model: nn.Module, episode: Episode, options: argparse.Namespace, seed: int) -> dict[str, object]:
    """The columns of an episode."""
    start, end = (
        adapt(
            model,
            episode.support,
            episode.support_labels,
            steps=steps,
            tuned=options.tuned,
            rate=options.rate,
            follow=1.0,
            levels=False,  # which near tasks do without
            seed=seed,
        )
        for steps in (0, options.steps)
    )
    right, told = [answers(start, episode), answers(end, episode)], start.report["transfer"]
    go_back(end.model, dict(start.model.named_parameters()), HALF)
    near = {"moved": told["views"]["moved"], "alike": told["levels"]["alike"]}
    return {"start": right[0], "half": answers(end, episode), "end": right[1], **near}


def answers(model: nn.Module, episode: Episode) -> float:
    """The share of the query images that are answered right."""
    with torch.no_grad():
        return accuracy(torch.cat([model(batch) for batch in episode.query.split(BATCH)]), episode.query_labels)


def as_adapt(row: Mapping[str, str]) -> str:
    """The column of the share that `adapt` would take; empty of rows from before it asked the old classifier."""
    if not row["alike"]:
        return ""
    share = share_of(nearness_of(float(row["alike"])), WAYS * int(row["shots"]), WAYS)
    return next(column for column, other in COLUMNS.items() if other == share)


def above_start(rows: Sequence[Mapping[str, str]], column: str | None) -> str:
    """Points of accuracy above the start; ``None``: of the column that `as_adapt` says, a dash if it says none."""
    if column is None and not all(map(as_adapt, rows)):
        return "-"
    gains = [100 * (float(row[column or as_adapt(row)]) - float(row["start"])) for row in rows]
    if len(gains) < BLOCKS:
        return f"{fmean(gains):+.1f}"
    return f"{fmean(gains):+.1f} ± {student_t(len(gains) - 1) * stdev(gains) / len(gains) ** 0.5:.1f}"


def table(results: Results, steps: int) -> str:
    """Of every backbone, DATA and number of images a class."""
    groups: dict[tuple[str, str, str, int], list[dict[str, str]]] = {}
    for row in results.rows:
        if row["steps"] == str(steps):
            groups.setdefault((row["backbone"], row["data"], row["tuned"], int(row["shots"])), []).append(row)
    names = ("backbone", "data", "tuned", "images a class", "episodes", "alike", "no step", "all", "half", "as `adapt`")
    lines = []
    for (backbone, data, tuned, shots), rows in sorted(groups.items()):
        start, asked = fmean(float(row["start"]) for row in rows), [float(row["alike"]) for row in rows if row["alike"]]
        alike = f"{fmean(asked):.2f}" if asked else "-"
        gains = [above_start(rows, column) for column in ("end", "half", None)]
        halves = sum(as_adapt(row) == "half" for row in rows)
        cells = [backbone, data, tuned, str(shots), str(len(rows)), alike, f"{100 * start:.1f}"]
        lines.append([*cells, *gains, str(halves)])
    return markdown((*names, "half of"), lines)


def main(words: list[str] | None = None) -> None:
    """Add the missing rows and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", required=True, metavar="DATA", help="images that episodes are drawn from")
    parser.add_argument("--backbones", nargs="+", default=["fashion"], help="fashion, lite0 or student folders")
    parser.add_argument("--assets", type=Path, help="folder with the weights of lite0")
    parser.add_argument("--shots", type=int, nargs="+", default=(1, 2, 4, 8), help="images a class (default: 1 2 4 8)")
    parser.add_argument("--episodes", type=int, default=40, help="of each number of images (default: 40)")
    parser.add_argument("--steps", type=int, default=50, help="default: 50")
    parser.add_argument("--tuned", type=Tuned, choices=list(Tuned), default=Tuned.ALL, help="by the steps")
    parser.add_argument("--rate", type=float, help="of the steps (default: the least of adapt's)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the CSV goes (default: benchmarks/results)")
    options = parser.parse_args(words)
    options.rate = options.rate or CANDIDATES[options.tuned][0]
    results = Results(options.out / "halfway.csv", KEY, MADE_OF)
    for name in options.backbones:
        known = name in ("fashion", "lite0")
        backbone = open_backbone(name, options.assets) if known else named(Path(name))
        for data in options.data:
            run(backbone, data, options, results)
    say(table(results, options.steps))


def named(folder: Path) -> Backbone:
    """A student folder as a backbone."""
    found = fashion(folder)
    return Backbone(folder.name, found.model, found.weights, found.data, found.validation)


if __name__ == "__main__":
    main()
