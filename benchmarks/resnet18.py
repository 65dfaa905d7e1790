"""The numbers of ResNet-18 on Fashion-MNIST: every generator at every size, and what 200 steps of distillation add.

    python -m benchmarks.resnet18 --data fashion_mnist:ROOT [--teacher FOLDER] [--seeds 3] [--out benchmarks/results]

``benchmarks.pilot``, with the same teacher and ``--out``, finds the learning rate of each start; where it was not run
for these weights the published rates stand, found on others of the same architecture, and the program says so. Without
``--teacher`` the teacher is trained by ``configs/teacher.yaml`` (3 epochs) if it is not there. Sizes are shares of
the parameters of the layers that may be factored. Each seed draws its own 1,024 calibration images (a quarter of them
is the guard's, held out of the statistics) and its own order of distillation, which starts from students as generated,
without the refit that it would undo; accuracy is on all 10,000 test images. Writes ``resnet18.csv``,
``resnet18_distilled.csv`` and ``resnet18.png`` and prints the tables. Rows that are there are not made again, so an
interrupted run goes on; delete a file to start over. Two CPU cores, about an hour and a half for three seeds.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from benchmarks.shared.common import RESULTS, Results, Set, budget_of, digest, read_set, say
from benchmarks.shared.distillation import PILOT, PILOT_KEY, Recipe, best_recipe, distilled, from_random
from benchmarks.shared.figures import resnet18_figure, resnet18_tables
from benchmarks.shared.pruning import STEPS, prune
from benchmarks.shared.sweep import DATA, KEY, WITH_DATA, WITHOUT_DATA, Generators, Sweep
from benchmarks.shared.teacher import train_teacher
from hypercompress.architecture import Architecture
from hypercompress.compress import finish
from hypercompress.models import load_model
from hypercompress.preparation import Plan, prepare
from hypercompress.running.norms import reestimate_norms
from hypercompress.synthetic.inversion import synthesize

SHARES = (0.25, 0.125, 0.0625, 0.05, 0.03, 0.02, 0.01)
DISTILLED = ("kfac", "hypernet", "whitened", "svd", "random", "torch-pruning")
DISTILLED_SHARE = 0.01
IMAGES = 1024  # a quarter of them serves the guard
LARGER = (766_000,)  # parameters; a further size of Torch-Pruning


@dataclass(frozen=True)
class Bench:
    """What every measurement needs.

    Args:
        teacher, architecture: the network and how to build it again.
        train: all training images, from which calibration images are drawn and with which students are distilled.
        test: the images that are measured on.
        weights: digest of the teacher's weights.
        generators: where the generators come from.
        images: calibration images.
        recipe: of every distillation; ``None``: for each start the one that the pilot found best for it.
        pruning_steps: of Torch-Pruning.
    """

    teacher: nn.Module
    architecture: Architecture | None
    train: Set
    test: Set
    weights: str
    generators: Generators
    images: int = IMAGES
    recipe: Recipe | None = None
    pruning_steps: int = STEPS

    def calibration(self, seed: int) -> Set:
        """The images of a seed for the statistics."""
        chosen = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        return self.train.subset(chosen[: self.images])

    def measure(self, data: str, seed: int) -> Plan:
        """The statistics of a seed on one of `DATA`."""
        example, batches = self.test.images[:2], None
        if data == "images":
            batches = self.calibration(seed).images.split(64)
        elif data == "synthetic":
            batches = torch.cat(synthesize(self.teacher, example.shape[1:], seed=seed)).split(16)
        elif data == "noise":
            batches = torch.cat(synthesize(self.teacher, example.shape[1:], steps=0, seed=seed)).split(64)
            return prepare(self.teacher, batches, "kfac", renormalize=True, seed=seed)
        return prepare(self.teacher, batches, "svd", example=example, seed=seed)

    def sweep(self, shares: Sequence[float]) -> Sweep:
        """All generators at these sizes."""
        return Sweep(self.measure, self.architecture, self.weights, self.generators, self.test, shares)


def distilled_rows(bench: Bench, results: Results, seeds: int, names: Sequence[str], share: float) -> None:
    """Students, pruned networks and random weights after as many steps, each at the rate that suits it best."""
    weights = {start: bench.generators.weights(start, bench.weights) for start in DISTILLED if start in names}
    recipes = {start: bench.recipe or found_recipe(results.path.parent, start, made) for start, made in weights.items()}
    for seed in range(seeds):
        plan: Plan | None = None
        for start, recipe in recipes.items():
            made_of = {"weights": weights[start], "recipe": str(recipe)}
            if results.has({"start": start, "size": f"{share:g}", "seed": seed, **made_of}):
                continue
            plan = plan or bench.measure("images", seed)
            for size, network in starts(bench, plan, start, share, seed):
                row = distilled(bench.teacher, network, bench.train, bench.test, recipe, seed)
                results.add({"start": start, "size": size, "seed": seed, **row, **made_of})
                say(f"{start}, {row['params']:,} parameters, seed {seed}: {row['top1_start']:.4f} -> {row['top1']:.4f}")


def found_recipe(out: Path, start: str, weights: str) -> Recipe:
    """The recipe that the pilot beside the results found for a start; else the published one, with a word."""
    try:
        return best_recipe(Results(out / PILOT, PILOT_KEY), start, weights)
    except LookupError:
        recipe = best_recipe(Results(RESULTS / PILOT, PILOT_KEY), start)
        say(f"{start}: no pilot of these weights in {out}; by {recipe}, the best for those of {RESULTS.name}/{PILOT}")
        return recipe


def starts(bench: Bench, plan: Plan, start: str, share: float, seed: int) -> Iterator[tuple[str, nn.Module]]:
    """The networks to distil by the name of their size; the one as small as the students comes last."""
    name = "kfac" if start in ("random", "torch-pruning") else start
    plan = replace(plan, generator=bench.generators.load(name))
    student = finish(plan, budget_of(plan.spec, share), refit=False, architecture=bench.architecture).model
    if start == "random":
        yield f"{share:g}", from_random(student, seed)
    elif start == "torch-pruning":
        calibration = bench.calibration(seed)
        names = {**{size: str(size) for size in LARGER}, sum(p.numel() for p in student.parameters()): f"{share:g}"}
        found = prune(bench.teacher, calibration, list(names), bench.pruning_steps)
        for size, pruned in sorted(found.items(), reverse=True):
            reestimate_norms(pruned, list(calibration.images.split(128)))
            yield names[size], pruned
    else:
        yield f"{share:g}", student


def run(
    bench: Bench,
    out: Path,
    seeds: int,
    names: Sequence[str],
    shares: Sequence[float] = SHARES,
    distilled_share: float = DISTILLED_SHARE,
    data: Sequence[str] = tuple(DATA),
) -> None:
    """All rows that are missing, then the figure and the tables. Distillation starts from students of real images."""
    table = Results(out / "resnet18.csv", KEY)
    after = Results(out / "resnet18_distilled.csv", ("start", "size", "seed"), ("weights", "recipe"))
    if "images" in data:
        distilled_rows(bench, after, seeds, names, distilled_share)
    bench.sweep(shares).run(table, seeds, names, data)
    resnet18_figure(table, after, out / "resnet18.png")
    say(resnet18_tables(table, after))


def open_bench(data: str, folder: Path, hypernet: str = "hypernet", limit: int | None = None) -> Bench:
    """Read the teacher and the images; ``limit`` takes so many of each set, for a quick try."""
    teacher, architecture = load_model(str(folder))
    say("reading the images and asking the teacher")
    train, test = (read_set(teacher, data, train=part, limit=limit) for part in (True, False))
    return Bench(teacher, architecture, train, test, digest(folder), Generators(hypernet))


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DATA", help="fashion_mnist:ROOT, as on the command line")
    parser.add_argument("--teacher", type=Path, metavar="FOLDER", help="trained teacher (default: train it now)")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions (default: 3)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the files go (default: benchmarks/results)")
    parser.add_argument("--hypernet", default="hypernet", help="folder of a hypernetwork (default: the released one)")
    choices = sorted({*WITH_DATA, *WITHOUT_DATA, *DISTILLED})
    parser.add_argument("--only", nargs="+", choices=choices, default=choices, help="make these rows only")
    parser.add_argument("--statistics", nargs="+", choices=list(DATA), default=list(DATA), help="and of these only")
    options = parser.parse_args(words)
    folder = options.teacher or train_teacher(options.data)
    bench = open_bench(options.data, folder, options.hypernet)
    run(bench, options.out, options.seeds, options.only, data=options.statistics)


if __name__ == "__main__":
    main()
