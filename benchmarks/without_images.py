"""Without images: what ``auto`` makes (`kfac` on noise, BatchNorms renormalised to it) beside ``svd`` of the weights.

    python -m benchmarks.without_images --root DATA --teacher FOLDER [FOLDER ...] [--assets ASSETS]
        [--out benchmarks/results]

Students at mild to middling shares of the parameters, as ``generate`` gives them; KL and agreement with the teacher on
up to 2,000 test images. ``--teacher`` takes folders of the zoo (`lightning_modules.zoo`), whose index says what data
each was trained on; ``--assets`` adds EfficientNet-Lite0 (`efficientnet_lite0`) and its photographs. Writes
``without_images.csv``; rows that are there are not made again. One CPU core, one to four minutes a teacher.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from benchmarks.common import RESULTS, Results, Set, digest, fidelity, read_set, say
from benchmarks.efficientnet_lite0 import open_teacher
from benchmarks.prediction import data_of
from hypercompress.compress import finish
from hypercompress.errors import BudgetError
from hypercompress.models import load_model
from hypercompress.preparation import prepare
from hypercompress.specs import Budget

SHARES = (0.95, 0.9, 0.8, 0.6, 0.4, 0.2)
GENERATORS = ("svd", "auto")
KEY = ("teacher", "share", "asked")
TEST = 2000
LEAST = 1e-6  # nats: below that a KL is 0 as far as its mean goes
REAL = "efficientnet_lite0"


def run(name: str, teacher: nn.Module, test: Set, weights: str, results: Results) -> None:
    """All rows of a teacher that are missing."""
    for asked in GENERATORS:
        key = {"teacher": name, "asked": asked, "weights": weights}
        missing = [share for share in SHARES if not results.has({**key, "share": share})]
        if not missing:
            continue
        plan = prepare(teacher, None, asked, example=test.images[:2])
        for share in missing:
            try:
                student = finish(plan, Budget(params=share))
            except BudgetError as error:
                say(f"{name}: {error}")
                continue
            found = fidelity(teacher, student, test)
            made = {"generator": plan.generator.name, "noise": plan.stand_in, "refitted": student.report["refitted"]}
            results.add({**key, "share": share, **made, "kl": found.kl, "agreement": found.agreement})
        say(f"{name}: {asked} is {plan.generator.name}")


def verdict(results: Results) -> str:
    """For the zoo's networks, and for EfficientNet-Lite0, a line for each share: how many are nearer, KL, agreement."""
    lines = []
    for group in ("the others", REAL):
        rows = [row for row in results.rows if (row["teacher"] == REAL) == (group == REAL)]
        for share in SHARES:
            svd, auto = (
                {row["teacher"]: row for row in rows if (row["asked"], float(row["share"])) == (asked, share)}
                for asked in GENERATORS
            )
            if pairs := [(svd[name], row) for name, row in auto.items() if name in svd]:
                lines.append(f"{group}, {share:.0%} of the parameters: {_compared(pairs)}")
    return "\n".join(lines)


def _compared(pairs: Sequence[tuple[Mapping[str, str], Mapping[str, str]]]) -> str:
    """What `verdict` says of rows of ``svd`` and of ``auto``."""
    nearer = sum(int(auto["noise"]) > 0 and float(auto["kl"]) < float(svd["kl"]) for svd, auto in pairs)
    kls, agree = [], []
    for rows in zip(*pairs, strict=True):
        kls.append(math.exp(math.fsum(math.log(max(float(row["kl"]), LEAST)) for row in rows) / len(rows)))
        agree.append(100 * math.fsum(float(row["agreement"]) for row in rows) / len(rows))
    return (
        f"auto nearer than svd on {nearer} of {len(pairs)}, KL (geometric mean) {kls[0]:.4g} -> {kls[1]:.4g}, "
        f"agreement {agree[0]:.1f} -> {agree[1]:.1f} %"
    )


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, metavar="DATA", help="folder that the data sets lie in")
    parser.add_argument("--teacher", type=Path, nargs="*", default=[], metavar="FOLDER", help="folders of the zoo")
    parser.add_argument("--assets", type=Path, metavar="ASSETS", help="folder of EfficientNet-Lite0 and photographs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the file goes (default: benchmarks/results)")
    options = parser.parse_args(words)
    results = Results(options.out / "without_images.csv", KEY)
    for folder in options.teacher:
        teacher, _ = load_model(str(folder))
        test = read_set(teacher, data_of(folder, options.root), train=False, limit=TEST)
        run(folder.name, teacher, test, digest(folder), results)
    if options.assets is not None:
        teacher, _ = open_teacher(options.assets)
        test = read_set(teacher, str(options.assets / "photos"), train=False)
        run(REAL, teacher, test, digest(options.assets), results)
    say(verdict(results))


if __name__ == "__main__":
    main()
