"""Networks of many classes and few images: the classifier's second moment as it was seen, and completed along its rows.

    python -m lightning_modules.zoo --config benchmarks/many_classes.yaml --out runs/glyphs
    python -m benchmarks.many_classes --root DATA --teacher runs/glyphs/* [--images 16 48 96]
        [--out benchmarks/results]

`kfac` students at four sizes, finished as ``generate`` finishes them, with so many images, of which a quarter is held
out, with what `collapse.py` does and without. KL and agreement on up to 2,000 test images. Writes
``many_classes.csv`` and prints, for each number of images, the geometric mean of one KL over the other; rows that are
there are not made again. One CPU core, three to ten minutes a teacher.
"""

import argparse
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from unittest.mock import patch

from torch import nn

from benchmarks.common import RESULTS, Results, digest, fidelity, read_set, say
from benchmarks.pairs import compared
from benchmarks.prediction import data_of
from benchmarks.without_images import TEST
from hypercompress.compress import finish
from hypercompress.errors import BudgetError
from hypercompress.models import load_model
from hypercompress.preparation import prepare
from hypercompress.specs import Budget

IMAGES = (16, 48, 96)
BATCH = 2  # small, so that three quarters of few images are measured
BUDGETS = tuple(Budget(params=share) for share in (0.8, 0.6, 0.4, 0.25))
KEY = ("teacher", "images", "share", "completed")


def _as_seen() -> AbstractContextManager[object]:
    """Inside the block nothing is completed."""
    return patch("hypercompress.preparation.completed", lambda _spec, sketches, *_, **__: sketches)


def run(name: str, teacher: nn.Module, weights: str, data: str, counts: Sequence[int], results: Results) -> None:
    """All rows of a teacher that are missing."""
    test = read_set(teacher, data, train=False, limit=TEST)
    for images, completed in ((images, completed) for images in counts for completed in (False, True)):
        key = {"teacher": name, "images": images, "completed": completed, "weights": weights}
        missing = [budget for budget in BUDGETS if not results.has({**key, "share": budget.share})]
        if not missing:
            continue
        train = read_set(teacher, data, train=True, limit=images)
        with nullcontext() if completed else _as_seen():
            plan = prepare(teacher, train.images.split(BATCH), "kfac")
        assert plan.split is not None  # images were given
        for budget in missing:
            try:
                student = finish(plan, budget)
            except BudgetError as error:
                say(f"{name}: {error}")
                continue
            found = fidelity(teacher, student, test)
            made = {"measured": plan.split.samples, "refitted": student.report["refitted"]}
            results.add({**key, "share": budget.share, **made, "kl": found.kl, "agreement": found.agreement})
        say(f"{name}, {images} images{', completed' if completed else ''}")


def verdict(results: Results) -> str:
    """A line for each number of images: the completed KL over the other, and how often it is the larger."""
    counts = sorted({int(row["images"]) for row in results.rows})
    found = ((count, [row for row in results.rows if row["images"] == str(count)]) for count in counts)
    return "\n".join(f"{count} images, {text}" for count, rows in found if (text := compared(rows, "completed")))


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, metavar="DATA", help="folder that the data sets lie in")
    parser.add_argument("--teacher", type=Path, nargs="+", required=True, metavar="FOLDER", help="folders of the zoo")
    parser.add_argument("--images", type=int, nargs="+", default=list(IMAGES), help="calibration images")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the file goes (default: benchmarks/results)")
    options = parser.parse_args(words)
    results = Results(options.out / "many_classes.csv", KEY)
    for folder in (folder for folder in options.teacher if folder.is_dir()):
        teacher, _ = load_model(str(folder))
        run(folder.name, teacher, digest(folder), data_of(folder, options.root), options.images, results)
    say(verdict(results))


if __name__ == "__main__":
    main()
