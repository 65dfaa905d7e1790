"""Distillation on few images, as they are and mixed.

    python -m benchmarks.mixing --root DATA --teacher FOLDER [FOLDER ...] [--images 64 256 1024 4096]
        [--shares 0.15 0.08 0.04] [--steps 200] [--out benchmarks/results]

`kfac` students as ``generate --no-final-fit`` makes them of so many training images (1,024 at most), distilled on
logits with these images and their mirror images: 200 steps of AdamW, batches of 128 or of as many as there are, at
twice Polyak's rate on the first of them, as of ``lr: auto`` (`lightning_modules.rates`). ``plain``: BatchNorms as the
first batch chooses (`lightning_modules.norms`). ``mixed``: each image has a box of another
(`lightning_modules.mixing`), and BatchNorms keep their moments. KL and top-1 on 2,000 test images. ``--teacher`` takes
folders of the zoo (`lightning_modules.zoo`), whose index says what data each was trained on (others: Fashion-MNIST).
Writes ``mixing.csv`` and prints, for each number of images, the geometric mean of the KL after the steps over that
before them. One CPU core: half a minute to five a row.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import torch
from torch import nn

from benchmarks.prediction import data_of
from benchmarks.shared.common import RESULTS, Results, Set, answered, digest, fidelity, markdown, say
from benchmarks.shared.distillation import Recipe, costs_of, distil, mixtures, orders
from benchmarks.shared.starts import BATCH, log_ratio, open_starts, told
from lightning_modules.norms import COSTS
from lightning_modules.rates import HIGHEST, PER_POLYAK, kl_and_slope

KEY = ("teacher", "images", "share", "steps", "way")
WAYS = ("plain", "mixed")


def run(folder: Path, data: str, options: argparse.Namespace, results: Results) -> None:
    """All rows of a teacher that are missing."""
    made = {"teacher": folder.name, "steps": options.steps, "weights": digest(folder)}
    for count in options.images:
        missing = {
            share: [way for way in WAYS if not results.has({**made, "images": count, "share": share, "way": way})]
            for share in options.shares
        }
        if not any(missing.values()):
            continue
        starts = open_starts(folder, data, count)
        if len(starts.train) < count:
            say(f"{folder.name}: there are {len(starts.train)} images")
            continue
        teacher, test = starts.teacher, starts.test
        pool = answered(teacher, torch.cat([starts.train.images, starts.train.images.flip(-1)]))
        for share in (share for share, ways in missing.items() if ways):
            start = starts.start(share)
            if start is None:
                continue
            before = fidelity(teacher, start, test)
            for way in missing[share]:
                recipe, images = steps_of(way, teacher, start, pool, options.steps, min(BATCH, count))
                after = fidelity(teacher, distil(start, images, recipe, 0), test)
                row = {
                    "teacher": folder.name,
                    "images": count,
                    "share": share,
                    "steps": options.steps,
                    "way": way,
                    "rate": recipe.lr,
                    "frozen": recipe.frozen_norms,
                    "kl_start": before.kl,
                    "kl": after.kl,
                    "top1_start": before.top1_student,
                    "top1": after.top1_student,
                    "top1_teacher": after.top1_teacher,
                    "weights": made["weights"],
                }
                results.add(row)
                say(f"{folder.name}, {count} images, {share:.0%}, {way}: KL {before.kl:.4f} -> {after.kl:.4f}")


def steps_of(way: str, teacher: nn.Module, start: nn.Module, pool: Set, steps: int, batch: int) -> tuple[Recipe, Set]:
    """How a student is distilled, and the images that it takes: of mixed ones as many as are used."""
    plan = Recipe("adamw", 1.0, steps=steps, batch=batch)
    first = pool.subset(orders(len(pool), plan, 0)[0])
    kl, slope = kl_and_slope(start, first.images, first.logits)
    rate = min(HIGHEST, PER_POLYAK * float(kl / slope))
    if way == "mixed":
        return Recipe("adamw", rate, steps=steps, batch=batch, frozen_norms=True), mixtures(teacher, pool, plan, 0)
    costs = costs_of(start, first)
    return Recipe("adamw", rate, steps=steps, batch=batch, frozen_norms=costs is not None and costs > COSTS), pool


def verdict(results: Results) -> str:
    """A line for each number of images: what the steps make of the KL either way, and one beside the other."""
    lines = []
    for count in sorted({int(row["images"]) for row in results.rows}):
        ways = {
            way: {
                (row["teacher"], row["share"], row["steps"]): log_ratio(row)
                for row in results.rows
                if (int(row["images"]), row["way"]) == (count, way)
            }
            for way in WAYS
        }
        both = sorted(ways["plain"].keys() & ways["mixed"].keys())
        if not both:
            continue
        plain, mixtures = ([ways[way][start] for start in both] for way in WAYS)
        beside = math.exp(fmean(mixtures) - fmean(plain))
        nearer = sum(ours < theirs for ours, theirs in zip(mixtures, plain, strict=True))
        lines.append(
            [str(count), str(len(both)), told(plain), told(mixtures), f"{beside:.2f} ({nearer} of {len(both)} nearer)"]
        )
    return markdown(("images", "students", *WAYS, "mixed over plain"), lines)


def main(words: Sequence[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder that the data sets lie in")
    parser.add_argument("--teacher", type=Path, nargs="+", required=True, metavar="FOLDER", help="student folders")
    parser.add_argument("--images", type=int, nargs="+", default=(64, 256, 1024, 4096), help="to train on")
    parser.add_argument("--shares", type=float, nargs="+", default=(0.15, 0.08, 0.04), help="of parameters")
    parser.add_argument("--steps", type=int, default=200, help="of distillation (default: 200)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the CSV goes")
    options = parser.parse_args(words)
    results = Results(options.out / "mixing.csv", KEY)
    for folder in options.teacher:
        run(folder, data_of(folder, options.root), options, results)
    say(verdict(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
