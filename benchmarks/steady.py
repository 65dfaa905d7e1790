"""With few calibration images: their statistics alone, and steadied by those of noise (``--steady``).

    python -m benchmarks.steady --root DATA --teacher FOLDER [FOLDER ...] [--images 16 32 128 512]
        [--out benchmarks/results]

`kfac` students at three sizes, finished as ``generate`` finishes them, a quarter of the images held out. KL and
agreement on up to 2,000 test images. ``--teacher`` takes folders of the zoo (`lightning_modules.zoo`), whose index says
what data each was trained on, of networks with BatchNorms. Writes ``steady.csv`` and prints, for each number of images,
the geometric mean of the steadied KL over the plain one; rows that are there are not made again. One CPU core, two to
four minutes a teacher.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from benchmarks.common import RESULTS, Results, digest, fidelity, read_set, say
from benchmarks.few_images import BUDGETS
from benchmarks.prediction import data_of
from hypercompress.compress import finish
from hypercompress.errors import BudgetError
from hypercompress.models import load_model
from hypercompress.preparation import prepare

IMAGES, TEST = (16, 32, 128, 512), 2000
BATCH = 2  # small, so that of 16 images three quarters are measured
KEY = ("teacher", "images", "unit", "share", "steady")
LEAST = 1e-6  # nats: below that a KL is 0 as far as its mean goes


def run(folder: Path, data: str, counts: Sequence[int], results: Results) -> None:
    """All rows of a teacher that are missing."""
    name, weights = folder.name, digest(folder)
    teacher, _ = load_model(str(folder))
    test = read_set(teacher, data, train=False, limit=TEST)
    for images, steady in ((images, steady) for images in counts for steady in (False, True)):
        key = {"teacher": name, "images": images, "steady": steady, "weights": weights}
        missing = [b for b in BUDGETS if not results.has({**key, "unit": str(b.unit), "share": b.share})]
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
    """A line for each number of images: the steadied KL over the plain one, and how often it is the larger."""
    kls = {tuple(row[name] for name in KEY): max(float(row["kl"]), LEAST) for row in results.rows}
    right = {tuple(row[name] for name in KEY): float(row["agreement"]) for row in results.rows}
    lines = []
    for images in sorted({int(row["images"]) for row in results.rows}):
        pairs = [
            ((*key[:-1], "False"), key)
            for key in kls
            if key[1:2] == (str(images),) and key[-1] == "True" and (*key[:-1], "False") in kls
        ]
        if not pairs:
            continue
        ratios = [math.log(kls[steady] / kls[plain]) for plain, steady in pairs]
        plain, steady = (math.fsum(right[pair[i]] for pair in pairs) / len(pairs) for i in (0, 1))
        lines.append(
            f"{images} images, {len(pairs)} students: {math.exp(math.fsum(ratios) / len(ratios)):.2f} of the KL "
            f"({sum(ratio > 0 for ratio in ratios)} larger), agreement {100 * plain:.1f} -> {100 * steady:.1f} %"
        )
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, metavar="DATA", help="folder that the data sets lie in")
    parser.add_argument("--teacher", type=Path, nargs="+", required=True, metavar="FOLDER", help="folders of the zoo")
    parser.add_argument("--images", type=int, nargs="+", default=list(IMAGES), help="calibration images")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the file goes (default: benchmarks/results)")
    options = parser.parse_args(words)
    results = Results(options.out / "steady.csv", KEY)
    for folder in options.teacher:
        run(folder, data_of(folder, options.root), options.images, results)
    say(verdict(results))


if __name__ == "__main__":
    main()
