"""Which recipe distils best: the choice behind `benchmarks.distillation.RECIPE`.

    python -m benchmarks.pilot --data fashion_mnist:ROOT --teacher FOLDER [--out benchmarks/results]

Tries every recipe on three starts of the ResNet-18 benchmark, all of the size of ``kfac`` at 1 %: that student, the
same student from random weights, and the network that Torch-Pruning leaves. Measured on 5,000 training images that no
student has seen; the test images are not touched. `RECIPE` is the one with the best mean over the three, and all
students of the benchmark share it. Writes
``distillation_pilot.csv``. Two CPU cores, about ten minutes.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from benchmarks.common import RESULTS, Results, Set, markdown, say, spread
from benchmarks.distillation import Recipe, distilled
from benchmarks.resnet18 import DISTILLED_SHARE, Bench, open_bench, starts

RECIPES = tuple(Recipe("adamw", lr) for lr in (1e-3, 3e-3, 1e-2))
STARTS = ("kfac", "random", "torch-pruning")
KEPT_OUT = 5000


def networks(bench: Bench) -> dict[str, nn.Module]:
    """The three starts."""
    plan, size = bench.measure(0), f"{DISTILLED_SHARE:g}"
    return {start: dict(starts(bench, plan, start, DISTILLED_SHARE, 0))[size] for start in STARTS}


def kept_out(train: Set, count: int = KEPT_OUT) -> tuple[Set, Set]:
    """The training images without a random ``count`` of them, and these."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(1))
    return train.subset(order[count:]), train.subset(order[:count])


def run(bench: Bench, results: Results, recipes: Sequence[Recipe] = RECIPES) -> None:
    """All rows that are missing."""
    train, test = kept_out(bench.train)
    found: dict[str, nn.Module] = {}
    for recipe in recipes:
        for start in STARTS:
            key = {"recipe": str(recipe), "start": start, "seed": 0, "weights": bench.weights}
            if not results.has(key):
                found = found or networks(replace(bench, train=train))
                row = distilled(bench.teacher, found[start], train, test, recipe, 0)
                results.add({**key, **row})
                say(f"{recipe}, {start}: {row['top1']:.4f}")


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DATA", help="fashion_mnist:ROOT, as on the command line")
    parser.add_argument("--teacher", type=Path, required=True, metavar="FOLDER", help="trained ResNet-18")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the file goes (default: benchmarks/results)")
    options = parser.parse_args(words)
    results = Results(options.out / "distillation_pilot.csv", ("recipe", "start", "seed"))
    run(open_bench(options.data, options.teacher), results)
    lines = []
    for recipe in map(str, RECIPES):
        each = [results.numbers("top1", recipe=recipe, start=start) for start in STARTS]
        mean = [sum(numbers[0] for numbers in each) / len(each)]
        lines.append([recipe, *(spread(numbers, 2, 100) for numbers in each), spread(mean, 2, 100)])
    say(markdown(("recipe", *STARTS, "mean"), lines))


if __name__ == "__main__":
    main()
