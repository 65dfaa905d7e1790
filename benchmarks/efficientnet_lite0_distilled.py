"""EfficientNet-Lite0 with its ImageNet weights: what 300 steps of distillation make of each generator's start.

    python -m benchmarks.efficientnet_lite0_distilled --assets ASSETS [--pilot] [--out benchmarks/results]

As `benchmarks.efficientnet_lite0`: statistics from the photographs of ``train`` and crops of them, agreement with the
teacher and KL on those of ``val``. The steps learn from the teacher's logits on the same photographs and crops, no
labels; BatchNorm keeps its moments, as batches are small. Starts are as generated, without the refit that steps would
undo. ``--pilot`` compares learning rates first, by a third of the steps and on photographs of ``train`` that neither
statistics nor steps have seen, and writes ``efficientnet_lite0_pilot.csv``; the best of each start is used, for the
hypernetwork that of `kfac`, next to which it starts. Writes ``efficientnet_lite0_distilled.csv``; rows that are there
are not made again. The folders are no classes of ImageNet, so top-1 says nothing. One thread, by the time of a step:
three minutes a row of the pilot and nine a row of the table.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from benchmarks.common import RESULTS, Results, Set, answered, budget_of, digest, read_set, say
from benchmarks.distillation import Recipe, distilled
from benchmarks.efficientnet_lite0 import BATCH, SHARES, open_teacher, photographs
from benchmarks.sweep import Generators
from hypercompress.compress import finish, prepare
from hypercompress.errors import BudgetError
from hypercompress.prepared import Plan

STARTS = ("kfac", "hypernet", "svd")
STEPS, SMALL = 300, 8  # and images in a batch of them
PILOTED = {"kfac": "kfac", "hypernet": "kfac", "svd": "svd"}  # whose rate a start takes
RATES = (1e-4, 3e-4, 1e-3)
PILOT_SHARE = 0.5
HELD_OUT = 5  # in the pilot: one photograph in so many is measured on
KEY, MADE_OF = ("start", "share", "seed"), ("weights", "recipe")


def recipe_of(rate: float, steps: int) -> Recipe:
    """The distillation at one learning rate."""
    return Recipe("adamw", rate, steps=steps, batch=SMALL, frozen_norms=True)


def start_of(plan: Plan, start: str, share: float, generators: Generators) -> nn.Module:
    """The student of a start, as generated.

    Raises:
        BudgetError: out of reach.
    """
    plan = replace(plan, generator=generators.load(start, STEPS))
    return finish(plan, budget_of(plan.spec, share), refit=False, norms=False).model


def pilot(teacher: nn.Module, pool: Set, generators: Generators, results: Results, weights: str) -> None:
    """Every start at one size and at every rate, on photographs held out of the training ones."""
    held = torch.arange(len(pool)) % HELD_OUT == 0
    test, train = (pool.subset(chosen.nonzero().flatten()) for chosen in (held, ~held))
    plan = prepare(teacher, train.images.split(BATCH), "svd")
    for start in sorted(set(PILOTED.values())):
        for rate in RATES:
            key = {"start": start, "rate": f"{rate:g}", "weights": weights}
            if not results.has(key):
                student = start_of(plan, start, PILOT_SHARE, generators)
                row = distilled(teacher, student, train, test, recipe_of(rate, STEPS // 3), 0)
                results.add({**key, **row})
                say(f"pilot, {start}, rate {rate:g}: KL {row['kl_start']:.3f} -> {row['kl']:.3f}")


def best_rate(results: Results, start: str) -> float:
    """The rate whose students were closest to the teacher in the pilot.

    Raises:
        LookupError: the pilot has no row of this start.
    """
    found = {rate: results.numbers("kl", start=PILOTED[start], rate=f"{rate:g}") for rate in RATES}
    known = {rate: numbers[0] for rate, numbers in found.items() if numbers}
    if not known:
        raise LookupError(f"received no rows of {start} in {results.path}; expected some; pass --pilot first")
    return min(known, key=known.__getitem__)


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True, help="folder with the weights and photos/")
    parser.add_argument("--pilot", action="store_true", help="compare the learning rates first")
    parser.add_argument("--only", nargs="+", choices=list(STARTS), default=list(STARTS), help="these starts only")
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES), help="and these sizes only")
    parser.add_argument("--seed", type=int, default=0, help="of the crops and of the order (default: 0)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the files go (default: benchmarks/results)")
    options = parser.parse_args(words)
    teacher, _ = open_teacher(options.assets)
    weights, generators = digest(options.assets), Generators()
    rates = Results(options.out / "efficientnet_lite0_pilot.csv", ("start", "rate"))
    folder = str(options.assets / "photos")
    if options.pilot:
        pilot(teacher, read_set(teacher, folder, train=True), generators, rates, weights)
    table = Results(options.out / "efficientnet_lite0_distilled.csv", KEY, MADE_OF)
    pool = answered(teacher, torch.cat(photographs(teacher, folder, options.seed)))
    test = read_set(teacher, folder, train=False)
    plan = prepare(teacher, pool.images.split(BATCH), "svd")
    for share in options.shares:
        for start in options.only:
            recipe = recipe_of(best_rate(rates, start), STEPS)
            made_of = {"weights": generators.weights(start, weights), "recipe": str(recipe)}
            key = {"start": start, "share": share, "seed": options.seed}
            if table.has({**key, **made_of}):
                continue
            try:
                student = start_of(plan, start, share, generators)
            except BudgetError as error:
                say(f"{start}: {error}")
                continue
            row = distilled(teacher, student, pool, test, recipe, options.seed)
            table.add({**key, **row, **made_of})
            say(f"{start}, {share:.0%}: KL {row['kl_start']:.3f} -> {row['kl']:.3f}, agreement {row['agreement']:.3f}")


if __name__ == "__main__":
    main()
