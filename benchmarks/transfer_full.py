"""Fast transfer as the start of ordinary fine-tuning, with all training images: steps until it is as good as it gets.

    python -m benchmarks.transfer_full [--assets ASSETS] [--backbones fashion lite0] [--data DATA] [--steps 200]
        [--every 5] [--seeds 3] [--device cpu|cuda] [--out benchmarks/results]

All weights of a backbone are tuned on the training images (AdamW at a constant rate, batches of 32, BatchNorms with the
moments they were trained with) from three starts: ``ridge``, the ridge head on the backbone as it is; ``adapt``, what
`hypercompress.adapt` makes of the training images; ``random``, a head drawn at random. The top-1 on the held-out images
is taken every few steps; the target is 99 % of what ``ridge`` reaches at the last step with the same seed. Each start
has the rate of a grid with the best mean accuracy along the way on a fifth of the training images, held out.

Writes ``transfer_full.csv``, a row for each start and seed; ``reached`` is empty where the target was not.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.few_shot.adapted import network_digest
from benchmarks.few_shot.backbones import BACKBONES, BATCH, TEACHER, Backbone, check_assets, open_backbone
from benchmarks.few_shot.tuning import RATES, Batches, accuracy
from benchmarks.shared.common import RESULTS, Results, markdown, say, spread
from hypercompress.data import Preprocess, open_data, read_pool
from hypercompress.data.episodes import Pool
from hypercompress.running.copying import copy_of
from hypercompress.student import Student
from hypercompress.transfer import adapt

NETWORKS = {"ridge": "none", "adapt": "auto", "random": "none"}  # of `adapt`, which makes every start
STARTS = tuple(NETWORKS)
TARGET = 0.99  # of the final accuracy of the first start
HELD_OUT = 0.2  # of the training images, to choose rates on
CSV = "transfer_full.csv"
KEY = ("backbone", "data", "start", "seed")
MADE_OF = ("weights", "steps", "every")


@dataclass(frozen=True)
class Schedule:
    """How long each start is tuned.

    Args:
        steps: of 32 images.
        every: steps between two looks at the held-out images; divides ``steps``.
    """

    steps: int = 200
    every: int = 5


def start_of(name: str, model: nn.Module, train: Pool, seed: int) -> Student:
    """One of `STARTS`, made from the training images.

    Args:
        seed: of the random head.
    """
    device, classes = next(model.parameters()).device, max(train.classes) + 1
    batches = [(images.to(device), labels.to(device)) for images, labels in _batches(train)]
    names = [str(label) for label in range(classes)]
    found = adapt(model, batches, names=names, network=NETWORKS[name], views=0, levels=False)  # steps see no views
    if name == "random":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found.reset_classifier(classes)
        found.to(device)
    return found


def curve(start: nn.Module, train: Pool, test: Pool, rate: float, schedule: Schedule, seed: int) -> list[float]:
    """Top-1 on ``test`` before the first step and after every few, while all weights are tuned on ``train``.

    Args:
        start: not modified.
        rate: of AdamW, constant, without weight decay.
        seed: of the order of the images.
    """
    model = copy_of(start).eval().requires_grad_(True)
    device, batches = next(model.parameters()).device, Batches(len(train), seed)
    optimizer, found = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.0), [top1(model, test)]
    for step in range(1, schedule.steps + 1):
        chosen = batches.draw()
        loss = F.cross_entropy(model(train.images[chosen].to(device)), train.labels[chosen].to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not step % schedule.every:
            found.append(top1(model, test))
    return found


def top1(model: nn.Module, pool: Pool) -> float:
    """Share of right answers."""
    device = next(model.parameters()).device
    with torch.no_grad():
        logits = torch.cat([model(images.to(device)) for images, _ in _batches(pool)])
    return accuracy(logits.cpu(), pool.labels)


def choose_rate(name: str, model: nn.Module, train: Pool, schedule: Schedule) -> float:
    """The rate of the grid with the best mean accuracy along the way, on training images held out."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    kept = round((1 - HELD_OUT) * len(order))
    rest, held_out = (Pool(train.name, train.images[p], train.labels[p]) for p in (order[:kept], order[kept:]))
    start = start_of(name, model, rest, seed=0)
    means = {rate: fmean(curve(start, rest, held_out, rate, schedule, seed=0)) for rate in RATES}
    say(f"{name}: " + ", ".join(f"{rate:g}: {100 * mean:.1f} %" for rate, mean in means.items()))
    return max(RATES, key=means.__getitem__)


def reached(accuracies: Sequence[float], target: float, every: int) -> int | None:
    """Steps until the target, if it was reached."""
    return next((place * every for place, found in enumerate(accuracies) if found >= target), None)


def key_of(common: Mapping[str, Any], name: str, seed: int) -> dict[str, Any]:
    """What a row is found by; ``weights`` are those of the backbone in ``common``, and here of the network as well."""
    weights = common["weights"] + network_digest(name, NETWORKS[name])
    return {**common, "weights": weights, "start": name, "seed": seed}


def run(backbone: Backbone, schedule: Schedule, seeds: int, results: Results) -> None:
    """All rows of a backbone that are missing."""
    for data, text in backbone.data.items():
        common = {"backbone": backbone.name, "data": data, "weights": backbone.weights, **asdict(schedule)}
        keys = {(name, seed): key_of(common, name, seed) for name in STARTS for seed in range(seeds)}
        if all(results.has(key) for key in keys.values()):
            continue
        train, test = (_pool(backbone, text, train=part) for part in (True, False))
        rates = {name: choose_rate(name, backbone.model, train, schedule) for name in STARTS}
        for seed in range(seeds):
            target = None
            for name in STARTS:
                start = start_of(name, backbone.model, train, seed)
                found = curve(start, train, test, rates[name], schedule, seed)
                target = TARGET * found[-1] if target is None else target
                steps = reached(found, target, schedule.every)
                row = {"rate": rates[name], "images": len(train), "before": found[0], "final": found[-1]}
                results.add({**keys[name, seed], **row, "target": target, "reached": steps})
                say(f"{backbone.name} on {data}, {name}: {100 * found[0]:.1f} % -> {100 * found[-1]:.1f} %, {steps}")


def table(results: Results) -> str:
    """For each backbone, data set and start: top-1 before and after, steps to the target in each seed."""
    lines = []
    for backbone, data in dict.fromkeys((row["backbone"], row["data"]) for row in results.rows):
        for start in STARTS:
            chosen = {"backbone": backbone, "data": data, "start": start}
            rows = [row for row in results.rows if all(row[name] == value for name, value in chosen.items())]
            if rows:
                shares = [spread(results.numbers(name, **chosen), 1, 100) for name in ("before", "final")]
                steps = ", ".join(row["reached"] or f"not in {row['steps']}" for row in rows)
                lines.append([backbone, data, start, rows[0]["rate"], *shares, steps])
    return markdown(("backbone", "data", "start", "rate", "top-1 before", "after", "steps to the target"), lines)


def _batches(pool: Pool) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(pool.images.split(BATCH), pool.labels.split(BATCH), strict=True))


def _pool(backbone: Backbone, text: str, *, train: bool) -> Pool:
    return read_pool(text, open_data(text, Preprocess.of(backbone.model), train=train))


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, help="folder with the weights of EfficientNet-Lite0 and photos/")
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=["fashion"], help="default: fashion")
    parser.add_argument("--data", nargs="+", default=[], help="move to these DATA instead")
    parser.add_argument("--steps", type=int, default=Schedule.steps, help="of each run (default: 200)")
    parser.add_argument("--every", type=int, default=Schedule.every, help="steps between two looks (default: 5)")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions (default: 3)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the file goes (default: benchmarks/results)")
    options = parser.parse_args(words)
    if options.steps < 1 or options.every < 1 or options.steps % options.every:
        parser.error(
            f"received --steps {options.steps} and --every {options.every}; expected a number of steps that --every "
            "divides; change one of them"
        )
    check_assets(options.backbones, options.assets)
    results = Results(options.out / CSV, KEY, MADE_OF)
    for name in options.backbones:
        backbone = open_backbone(name, options.assets, TEACHER, options.data, options.device)
        run(backbone, Schedule(options.steps, options.every), options.seeds, results)
    say(table(results))


if __name__ == "__main__":
    main()
