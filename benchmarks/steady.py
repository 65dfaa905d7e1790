"""With few calibration images: their statistics alone, and steadied by those of noise (``--steady``).

    python -m benchmarks.steady --root DATA --teacher FOLDER [FOLDER ...] [--assets ASSETS] [--images 16 32 128 512]
        [--out benchmarks/results]

`kfac` students at a few sizes, finished as ``generate`` finishes them, a quarter of the images held out. KL and
agreement on up to 2,000 test images. ``--teacher`` takes folders of the zoo (`lightning_modules.zoo`), whose index says
what data each was trained on, of networks with BatchNorms; ``--assets`` adds EfficientNet-Lite0 (`efficientnet_lite0`)
and its photographs. Writes ``steady.csv`` and prints, for each number of images, the geometric mean of the steadied KL
over the plain one; rows that are there are not made again. One CPU core, two to four minutes a teacher.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from benchmarks.common import RESULTS, Results, digest, fidelity, read_set, say
from benchmarks.efficientnet_lite0 import open_teacher
from benchmarks.few_images import BUDGETS
from benchmarks.pairs import compared
from benchmarks.prediction import data_of
from benchmarks.without_images import REAL, TEST
from hypercompress.compress import finish
from hypercompress.errors import BudgetError
from hypercompress.models import load_model
from hypercompress.preparation import prepare
from hypercompress.specs import Budget

IMAGES = (16, 32, 128, 512)
BATCH = 2  # small, so that of 16 images three quarters are measured
KEY = ("teacher", "images", "unit", "share", "steady")
REAL_BUDGETS = tuple(Budget(params=share) for share in (0.8, 0.65, 0.5, 0.35))


def run(name: str, teacher: nn.Module, weights: str, data: str, counts: Sequence[int], results: Results) -> None:
    """All rows of a teacher that are missing."""
    test = read_set(teacher, data, train=False, limit=TEST)
    for images, steady in ((images, steady) for images in counts for steady in (False, True)):
        key = {"teacher": name, "images": images, "steady": steady, "weights": weights}
        budgets = REAL_BUDGETS if name == REAL else BUDGETS
        missing = [b for b in budgets if not results.has({**key, "unit": str(b.unit), "share": b.share})]
        if not missing:
            continue
        train = read_set(teacher, data, train=True, limit=images)
        plan = prepare(teacher, train.images.split(BATCH), "kfac", steady=steady)
        assert plan.split is not None  # images were given
        for budget in missing:
            try:
                student = finish(plan, budget)
            except BudgetError as error:
                say(f"{name}: {error}")
                continue
            found = fidelity(teacher, student, test)
            made = {"measured": plan.split.samples, "refitted": student.report["refitted"]}
            row = {**key, "unit": str(budget.unit), "share": budget.share, **made}
            results.add({**row, "kl": found.kl, "agreement": found.agreement})
        say(f"{name}, {images} images{', steadied' if steady else ''}")


def verdict(results: Results) -> str:
    """A line for each number of images: the steadied KL over the plain one, and how often it is the larger;
    EfficientNet-Lite0, whose images are few, stands for itself.
    """
    lines = []
    for images in sorted({int(row["images"]) for row in results.rows}):
        for real in (False, True):
            rows = [r for r in results.rows if r["images"] == str(images) and (r["teacher"] == REAL) == real]
            if text := compared(rows, "steady"):
                lines.append(f"{REAL + ', ' if real else ''}{images} images, {text}")
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, metavar="DATA", help="folder that the data sets lie in")
    parser.add_argument("--teacher", type=Path, nargs="*", default=[], metavar="FOLDER", help="folders of the zoo")
    parser.add_argument("--assets", type=Path, metavar="ASSETS", help="folder of EfficientNet-Lite0 and photographs")
    parser.add_argument("--images", type=int, nargs="+", default=list(IMAGES), help="calibration images")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the file goes (default: benchmarks/results)")
    options = parser.parse_args(words)
    results = Results(options.out / "steady.csv", KEY)
    for folder in options.teacher:
        teacher, _ = load_model(str(folder))
        run(folder.name, teacher, digest(folder), data_of(folder, options.root), options.images, results)
    if options.assets is not None:
        teacher, _ = open_teacher(options.assets)
        run(REAL, teacher, digest(options.assets), str(options.assets / "photos"), options.images, results)
    say(verdict(results))


if __name__ == "__main__":
    main()
