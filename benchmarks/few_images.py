"""With few calibration images: one gradient of each, several, and several of softened predictions (`fisher.Probing`).

    python -m benchmarks.few_images --root DATA --teacher FOLDER [FOLDER ...] [--images 32 128]
        [--out benchmarks/results]

`kfac` students at three sizes, as ``generate --no-final-fit`` makes them, which holds out a quarter of the images.
KL on up to 1,024 test images. ``--teacher`` takes folders of the zoo (`lightning_modules.zoo`), whose index says what
data each was trained on (others: Fashion-MNIST). Writes ``few_images.csv`` and prints the geometric mean of each way's
KL over that of one gradient. Two CPU cores, about a minute a teacher.
"""

import argparse
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.prediction import data_of
from benchmarks.shared.common import RESULTS, Results, digest, fidelity, read_set, say
from hypercompress.compress import finish
from hypercompress.curvature.fisher import Probing
from hypercompress.errors import BudgetError
from hypercompress.models import load_model
from hypercompress.preparation import prepare
from hypercompress.sketch import sketch
from hypercompress.specs import Budget

IMAGES, TEST = (32, 128), 1024
BUDGETS = (Budget(params=0.3), Budget(params=0.15), Budget(macs=0.3))
BATCH = 16
KEY = ("teacher", "images", "unit", "share", "probing")


def ways(samples: int) -> dict[str, Probing]:
    """What is compared, for so many samples in the statistics."""
    chosen = Probing.of(samples)
    return {"one": Probing(), "several": Probing(chosen.draws), "several, softened": chosen}


def run(folder: Path, data: str, images: int, results: Results) -> None:
    """All rows of a teacher with so many images that are missing."""
    name, weights = folder.name, digest(folder)
    teacher, _ = load_model(str(folder))
    train = read_set(teacher, data, train=True, limit=images, shuffled=True)
    test = read_set(teacher, data, train=False, limit=TEST)
    plan = prepare(teacher, train.images.split(BATCH), "kfac")
    assert plan.split is not None
    batches = plan.split.statistics
    for way, probing in ways(plan.split.samples).items():
        measured = replace(plan, sketches=sketch(plan.teacher, plan.spec, batches, probing=probing))
        for budget in BUDGETS:
            key = {"teacher": name, "images": images, "unit": str(budget.unit), "share": budget.share, "probing": way}
            if results.has({**key, "weights": weights}):
                continue
            try:
                student = finish(measured, budget)
            except BudgetError as error:
                say(f"{name}: {error}")
                continue
            found = fidelity(plan.teacher, student, test)
            row = {"kl": found.kl, "agreement": found.agreement, "refitted": student.report["refitted"]}
            results.add({**key, **row, "weights": weights})
        say(f"{name}, {images} images: {way}")


def verdict(results: Results) -> str:
    """The geometric mean over all networks and sizes of the KL over that of one gradient, a line for each way."""
    lines = []
    for images in sorted({int(row["images"]) for row in results.rows}):
        rows = [row for row in results.rows if int(row["images"]) == images]
        kls = {tuple(row[k] for k in KEY): max(float(row["kl"]), 1e-4) for row in rows}
        for way in sorted({row["probing"] for row in rows}):
            pairs = [(kl, kls.get((*key[:-1], "one"))) for key, kl in kls.items() if key[-1] == way]
            ratios = [math.log(kl / one) for kl, one in pairs if one is not None]
            worse = sum(ratio > 0 for ratio in ratios)
            mean = math.exp(sum(ratios) / max(1, len(ratios)))
            lines.append(
                f"{images} images, {way}: {mean:.2f} of the KL of one gradient ({worse} of {len(ratios)} worse)"
            )
    return "\n".join(lines)


def arguments(description: str | None, images: Sequence[int], *, required: bool = True) -> argparse.ArgumentParser:
    """What a program about few images is asked; ``required``: teachers are."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, metavar="DATA", help="folder that the data sets lie in")
    parser.add_argument(
        "--teacher", type=Path, nargs="+", required=required, default=[], metavar="FOLDER", help="folders of the zoo"
    )
    parser.add_argument("--images", type=int, nargs="+", default=list(images), help="calibration images")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the file goes (default: benchmarks/results)")
    return parser


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    options = arguments(__doc__, IMAGES).parse_args(words)
    results = Results(options.out / "few_images.csv", KEY)
    for folder in options.teacher:
        for images in options.images:
            run(folder, data_of(folder, options.root), images, results)
    say(verdict(results))


if __name__ == "__main__":
    main()
