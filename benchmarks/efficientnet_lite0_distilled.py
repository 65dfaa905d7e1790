"""EfficientNet-Lite0 with its ImageNet weights: what 300 steps of distillation make of each generator's start.

    python -m benchmarks.efficientnet_lite0_distilled --assets ASSETS [--pilot] [--statistics images ...] [--only ...]
        [--batch 32] [--crops 12] [--mixed] [--device cpu|cuda] [--out benchmarks/results]

As `benchmarks.efficientnet_lite0`: starts from the photographs of ``train`` and crops of them, from the weights alone,
or from 1/f noise; agreement with the teacher and KL on those of ``val``. The steps learn from the teacher's logits on
the photographs of ``train`` and crops of them, no labels; BatchNorm keeps its moments, as so few photographs have poor
ones. Starts are as generated, without the refit that steps would undo: of `svd` that is the same with photographs and
without. Where the guard of the hypernetwork took `kfac`'s student, its row is `kfac`'s. ``--pilot`` compares learning
rates first, by a third of the steps and on photographs of ``train`` that neither statistics nor steps have seen, and
writes ``efficientnet_lite0_pilot.csv``; the best of each start is used. Writes ``efficientnet_lite0_distilled.csv``;
with ``--mixed`` each image of a step has a box of another, and the table is ``efficientnet_lite0_mixed.csv``. Rows that
are there are not made again. The folders are no classes of ImageNet, so top-1 says nothing. On a card a minute for the
images and some seconds a row; on one thread five minutes a row (``--batch 8``).
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.efficientnet_lite0 import BATCH, CROPS, SHARES, file_of, on_noise, open_teacher, photographs
from benchmarks.shared.common import RESULTS, Results, Set, answered, budget_of, cell, digest, read_set, say, stamp
from benchmarks.shared.distillation import Recipe, distilled, mixtures
from benchmarks.shared.sweep import NOISE, WITH_DATA, WITHOUT_DATA, Generators
from hypercompress.compress import finish
from hypercompress.errors import BudgetError
from hypercompress.preparation import Plan, prepare
from hypercompress.student import Student

STARTS = {"images": tuple(name for name in WITH_DATA if name != "svd"), "none": WITHOUT_DATA, "noise": NOISE}
SOURCES = tuple(STARTS)  # of the statistics
NAMES = tuple(dict.fromkeys(name for names in STARTS.values() for name in names))
STEPS = 300
RATES = (1e-4, 3e-4, 1e-3)
PILOT_SHARE = 0.5
HELD_OUT = 5  # in the pilot: one photograph in so many is measured on
PILOT, TABLE = "efficientnet_lite0_pilot.csv", "efficientnet_lite0_distilled.csv"
MIXED_TABLE = "efficientnet_lite0_mixed.csv"
PILOT_KEY, KEY, MADE_OF = ("data", "start", "rate"), ("data", "start", "share", "seed"), ("weights", "recipe")


@dataclass(frozen=True)
class Bench:
    """The network, the photographs, and which starts are compared.

    Args:
        assets: folder of the weights and the photographs.
        device: of torch.
        batch: images of a step.
        crops: of each photograph that the steps learn from, beside itself.
        starts: generators by name, of those that a source of statistics has.
        mixed: whether the steps learn from images with a box of another.
    """

    assets: Path
    device: str = "cpu"
    batch: int = 32
    crops: int = CROPS
    sources: Sequence[str] = SOURCES
    starts: Sequence[str] = NAMES
    generators: Generators = field(default_factory=Generators)
    mixed: bool = False

    @property
    def folder(self) -> str:
        """The photographs."""
        return str(self.assets / "photos")

    def teacher(self) -> nn.Module:
        """The network, on the device."""
        return open_teacher(self.assets)[0].to(self.device)

    def pairs(self) -> Iterator[tuple[str, str]]:
        """Sources and the starts made from each."""
        for source in self.sources:
            yield from ((source, start) for start in STARTS[source] if start in self.starts)

    def recipe(self, rate: float, steps: int) -> Recipe:
        """The distillation at one learning rate."""
        return Recipe("adamw", rate, steps=steps, batch=self.batch, frozen_norms=True)

    def weights(self, start: str) -> str:
        """Digest of all that a start depends on."""
        return self.generators.weights(start, digest(file_of(self.assets)))

    def start(self, plan: Plan, start: str, share: float) -> Student:
        """The student of a start, as generated.

        Raises:
            BudgetError: out of reach.
        """
        chosen = self.generators.given_to(plan, start)
        return finish(chosen, budget_of(plan.spec, share), refit=False, norms=False)

    def images(self, teacher: nn.Module, seed: int) -> tuple[torch.Tensor, Set, Set]:
        """The photographs that the statistics read, those that the steps learn from, and those that are measured on.

        Args:
            seed: of the crops.
        """
        measured, pool = (
            torch.cat(photographs(teacher, self.folder, seed, crops)).to(self.device) for crops in (CROPS, self.crops)
        )
        test = read_set(teacher, self.folder, train=False)
        # The folders are no classes of ImageNet.
        return measured, answered(teacher, pool), replace(test, labels=torch.full_like(test.labels, -1))

    def plans(self, teacher: nn.Module, images: torch.Tensor) -> dict[str, Plan]:
        """The teacher with its statistics, by source."""
        return {source: self._plan(source, teacher, images) for source in self.sources}

    @staticmethod
    def _plan(source: str, teacher: nn.Module, images: torch.Tensor) -> Plan:
        if source == "noise":
            return on_noise(teacher, images.shape[1:], 0)
        return prepare(teacher, images.split(BATCH) if source == "images" else None, "svd", example=images[:2])


def pilot(bench: Bench, results: Results) -> None:
    """Every start at one size and at every rate, on photographs held out of the training ones."""
    teacher = bench.teacher()
    pool = read_set(teacher, bench.folder, train=True)
    held = torch.arange(len(pool), device=bench.device) % HELD_OUT == 0
    test, train = (pool.subset(chosen.nonzero().flatten()) for chosen in (held, ~held))
    # The photographs come class after class, and not all batches give statistics.
    plans = bench.plans(teacher, train.shuffled().images)
    for source, start in bench.pairs():
        for rate in RATES:
            recipe = bench.recipe(rate, STEPS // 3)
            key = {"data": source, "start": start, "rate": f"{rate:g}"}
            made_of = {"weights": bench.weights(start), "recipe": str(recipe)}
            if not results.has({**key, **made_of}):
                student = bench.start(plans[source], start, PILOT_SHARE).model
                row = distilled(teacher, student, train, test, recipe, 0)
                results.add({**key, **row, **made_of})
                say(f"pilot, {source}, {start}, rate {rate:g}: KL {row['kl_start']:.3f} -> {row['kl']:.3f}")


def best_rate(bench: Bench, results: Results, source: str, start: str) -> float:
    """The rate whose students were closest to the teacher in the pilot.

    Raises:
        LookupError: the pilot has no row of this start, made of these weights, with steps of this kind.
    """
    of = {"data": source, "start": start, "weights": bench.weights(start)}
    found = {rate: results.numbers("kl", **of, recipe=str(bench.recipe(rate, STEPS // 3))) for rate in RATES}
    known = {rate: numbers[0] for rate, numbers in found.items() if numbers}
    if not known:
        raise LookupError(
            f"received no rows of {start} ({source}) from the weights {of['weights']} with batches of {bench.batch} in "
            f"{results.path}; expected some; pass --pilot first"
        )
    return min(known, key=known.__getitem__)


def _of_kfac(student: Student, table: Results, key: Mapping[str, Any]) -> dict[str, str] | None:
    """The row of `kfac` by the same steps, where the guard of the hypernetwork took its student."""
    if key["start"] != "hypernet" or student.report["generator"]["strength"]:
        return None
    wanted = {name: cell(value) for name, value in {**key, "start": "kfac"}.items()}
    rows = [row for row in table.rows if all(row[name] == value for name, value in wanted.items())]
    own = (*KEY, *MADE_OF, *stamp())  # of each row
    return {name: value for name, value in rows[0].items() if name not in own} if rows else None


def run(bench: Bench, rates: Results, table: Results, shares: Sequence[float], seed: int) -> None:
    """All rows of a seed that are missing."""
    recipes = {pair: bench.recipe(best_rate(bench, rates, *pair), STEPS) for pair in bench.pairs()}
    teacher = bench.teacher()
    measured, pool, test = bench.images(teacher, seed)
    plans = bench.plans(teacher, measured)
    how = f"{bench.crops} crops"
    if bench.mixed:
        pool, how = mixtures(teacher, pool, bench.recipe(RATES[0], STEPS), seed), f"{how}, mixed"
    for share in shares:
        for (source, start), recipe in recipes.items():
            made_of = {"weights": bench.weights(start), "recipe": f"{recipe}, {how}"}
            key = {"data": source, "start": start, "share": share, "seed": seed}
            if table.has({**key, **made_of}):
                continue
            try:
                student = bench.start(plans[source], start, share)
            except BudgetError as error:
                say(f"{start}: {error}")
                continue
            row = _of_kfac(student, table, {**key, "recipe": made_of["recipe"]})
            row = row or distilled(teacher, student.model, pool, test, recipe, seed)
            table.add({**key, **row, **made_of})
            change = (
                f"KL {float(row['kl_start']):.3f} -> {float(row['kl']):.3f}, agreement {float(row['agreement']):.3f}"
            )
            say(f"{source}, {start}, {share:.0%}: {change}")


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True, help="folder with the weights and photos/")
    parser.add_argument("--pilot", action="store_true", help="compare the learning rates first")
    parser.add_argument("--statistics", nargs="+", choices=SOURCES, default=SOURCES, help="starts of these only")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="starts of these generators only")
    parser.add_argument("--shares", nargs="*", type=float, default=list(SHARES), help="and these sizes only")
    parser.add_argument("--seed", type=int, default=0, help="of the crops and of the order (default: 0)")
    parser.add_argument("--batch", type=int, default=32, help="images of a step (default: 32)")
    parser.add_argument("--crops", type=int, default=12, help="of each photograph, for the steps (default: 12)")
    parser.add_argument(
        "--mixed", action="store_true", help="paste images into each other (with --batch 8 1.5 GB of them)"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the files go (default: benchmarks/results)")
    options = parser.parse_args(words)
    starts = (options.statistics, options.only)
    bench = Bench(options.assets, options.device, options.batch, options.crops, *starts, mixed=options.mixed)
    rates = Results(options.out / PILOT, PILOT_KEY, MADE_OF)
    if options.pilot:
        pilot(bench, rates)
    if options.shares:
        table = Results(options.out / (MIXED_TABLE if options.mixed else TABLE), KEY, MADE_OF)
        run(bench, rates, table, options.shares, options.seed)


if __name__ == "__main__":
    main()
