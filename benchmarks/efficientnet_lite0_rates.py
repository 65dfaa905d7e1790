"""EfficientNet-Lite0 with its ImageNet weights: distillation at the rate of ``lr: auto`` and at that of the root of the
KL, which it was for a day.

    python -m benchmarks.efficientnet_lite0_rates --assets ASSETS [--shares 0.5 0.65]
        [--ways "2 x step" "0.0025 x root"] [--steps 100] [--batch 32] [--crops 4] [--device cpu|cuda]
        [--out benchmarks/results]

`kfac` students of the photographs of ``train`` and two crops of each, as generated; label-free steps on these
photographs and ``--crops`` crops of each, BatchNorms frozen; agreement with the teacher and KL on those of ``val``. A
way is a number of Polyak's steps or of roots of the KL, both of the first batch of steps, as a run of ``lr: auto``
measures them (`lightning_modules.rates`); ``benchmarks.start_rates`` does the same for small networks. Writes
``efficientnet_lite0_rates.csv``. One core: a quarter of an hour a row.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.efficientnet_lite0_distilled import Bench
from benchmarks.shared.common import RESULTS, Results, markdown, say
from benchmarks.shared.distillation import distilled, orders
from benchmarks.start_rates import rate_of
from lightning_modules.rates import kl_and_slope

KEY, MADE_OF = ("share", "way", "steps"), ("weights", "crops", "batch")


def run(bench: Bench, results: Results, options: argparse.Namespace) -> None:
    """All rows that are missing."""
    teacher, seed = bench.teacher(), 0
    measured, pool, test = bench.images(teacher, seed)
    plan = bench.plans(teacher, measured)["images"]
    for share in options.shares:
        for way in options.ways:
            row = {"share": share, "way": way, "steps": options.steps, "crops": bench.crops, "batch": bench.batch}
            row["weights"] = bench.weights("kfac")
            if results.has(row):
                continue
            student = bench.start(plan, "kfac", share)
            first = pool.subset(orders(len(pool), bench.recipe(1.0, options.steps), seed)[0])
            kl, slope = (float(value) for value in kl_and_slope(student, first.images, first.logits))
            recipe = bench.recipe(rate_of(way, kl, slope), options.steps)
            found = distilled(teacher, student, pool, test, recipe, seed)
            results.add({**row, "rate": recipe.lr, "kl_batch": kl, **found})
            say(f"{share:.0%}, {way}: rate {recipe.lr:.2g}, KL {found['kl_start']:.3f} -> {found['kl']:.3f}")


def main(words: Sequence[str] | None = None) -> None:
    """Add the missing rows and print all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True, help="folder with the weights and photos/")
    parser.add_argument("--shares", nargs="+", type=float, default=(0.5, 0.65), help="of the parameters")
    parser.add_argument("--ways", nargs="+", default=("2 x step", "0.0025 x root"), help="such as '1 x step'")
    parser.add_argument("--steps", type=int, default=100, help="default: 100")
    parser.add_argument("--batch", type=int, default=32, help="images of a step (default: 32)")
    parser.add_argument("--crops", type=int, default=4, help="of each photograph, for the steps (default: 4)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the CSV goes (default: benchmarks/results)")
    options = parser.parse_args(words)
    bench = Bench(options.assets, options.device, options.batch, options.crops, ["images"], ["kfac"])
    results = Results(options.out / "efficientnet_lite0_rates.csv", KEY, MADE_OF)
    run(bench, results, options)
    columns = ("share", "way", "steps", "rate", "kl_start", "kl", "agreement")
    say(markdown(columns, [[row[column] for column in columns] for row in results.rows]))


if __name__ == "__main__":
    main()
