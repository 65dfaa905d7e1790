"""Which recipe distils each start best: the choice behind ``benchmarks.resnet18``.

    python -m benchmarks.pilot --data fashion_mnist:ROOT --teacher FOLDER [--seeds 2] [--hypernet FOLDER]
        [--out benchmarks/results]

Every start of the ResNet-18 benchmark at its smallest size, with every recipe. Measured on 5,000 training images that
no student has seen; the test images are not touched. Each start gets the recipe with the best mean accuracy there: one
rule and one grid for ours and for the others. Writes ``distillation_pilot.csv``, which ``benchmarks.resnet18`` reads
with the same ``--out``, for the same teacher. Two CPU cores, about twenty minutes.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from benchmarks.resnet18 import DISTILLED, DISTILLED_SHARE, Bench, open_bench, starts
from benchmarks.shared.common import RESULTS, Results, Set, markdown, say, spread
from benchmarks.shared.distillation import PILOT, PILOT_KEY, RECIPES, Recipe, distilled

KEPT_OUT = 5000


def networks(bench: Bench, seed: int) -> dict[str, nn.Module]:
    """All starts."""
    plan, size = bench.measure("images", seed), f"{DISTILLED_SHARE:g}"
    return {start: dict(starts(bench, plan, start, DISTILLED_SHARE, seed))[size] for start in DISTILLED}


def kept_out(train: Set, count: int = KEPT_OUT) -> tuple[Set, Set]:
    """The training images without a random ``count`` of them, and these."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(1))
    return train.subset(order[count:]), train.subset(order[:count])


def run(bench: Bench, results: Results, seeds: int = 2, recipes: Sequence[Recipe] = RECIPES) -> None:
    """All rows that are missing."""
    train, test = kept_out(bench.train)
    bench = replace(bench, train=train)
    for seed in range(seeds):
        found: dict[str, nn.Module] = {}
        for start in DISTILLED:
            weights = bench.generators.weights(start, bench.weights)
            for recipe in recipes:
                key = {"recipe": str(recipe), "start": start, "seed": seed, "weights": weights}
                if not results.has(key):
                    found = found or networks(bench, seed)
                    row = distilled(bench.teacher, found[start], train, test, recipe, seed)
                    results.add({**key, **row})
                    say(f"{recipe}, {start}, seed {seed}: {row['top1']:.4f}")


def table(bench: Bench, results: Results) -> str:
    """Accuracy of every start with every recipe, over the seeds; rows of other teachers are left out."""
    lines = []
    for start in DISTILLED:
        of = {"start": start, "weights": bench.generators.weights(start, bench.weights)}
        lines.append([start, *(spread(results.numbers("top1", recipe=str(r), **of), 2, 100) for r in RECIPES)])
    return markdown(("start", *map(str, RECIPES)), lines)


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DATA", help="fashion_mnist:ROOT, as on the command line")
    parser.add_argument("--teacher", type=Path, required=True, metavar="FOLDER", help="trained ResNet-18")
    parser.add_argument("--seeds", type=int, default=2, help="repetitions (default: 2)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the file goes (default: benchmarks/results)")
    parser.add_argument("--hypernet", default="hypernet", help="folder of a hypernetwork (default: the released one)")
    options = parser.parse_args(words)
    results = Results(options.out / PILOT, PILOT_KEY)
    bench = open_bench(options.data, options.teacher, options.hypernet)
    run(bench, results, options.seeds)
    say(table(bench, results))


if __name__ == "__main__":
    main()
