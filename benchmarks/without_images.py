"""Without images: what ``auto`` makes (`kfac` on noise, BatchNorms renormalised to it) beside ``svd`` of the weights.

    python -m benchmarks.without_images --root DATA --teacher FOLDER [FOLDER ...] [--assets ASSETS]
        [--out benchmarks/results]

Students at mild to middling shares of the parameters, as ``generate`` gives them; KL and agreement with the teacher on
up to 2,000 test images. ``--teacher`` takes folders of the zoo (`lightning_modules.zoo`), whose index says what data
each was trained on; ``--assets`` adds EfficientNet-Lite0 (`efficientnet_lite0`) and its photographs. Writes
``without_images.csv``; rows that are there are not made again. Two CPU cores, under a minute a teacher, five for
EfficientNet-Lite0.
"""

import argparse
import math
from collections.abc import Sequence
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
            row = {"kl": found.kl, "agreement": found.agreement, "seconds": student.report["seconds"]}
            results.add({**key, "share": share, **made, **row})
        say(f"{name}: {asked} is {plan.generator.name}")


def verdict(results: Results) -> str:
    """A line for each share: how many networks are nearer by ``auto``, the mean KLs and the mean agreements."""
    lines = []
    for share in SHARES:
        rows = {(r["teacher"], r["asked"]): r for r in results.rows if float(r["share"]) == share}
        both = [(rows.get((name, "svd")), auto) for (name, asked), auto in rows.items() if asked == "auto"]
        pairs = [(svd, auto) for svd, auto in both if svd is not None]
        if not pairs:
            continue
        logs = [[math.log(max(float(row["kl"]), 1e-6)) for row in pair] for pair in pairs]
        nearer = sum(auto <= svd for svd, auto in logs)
        kls = [math.exp(math.fsum(column) / len(pairs)) for column in zip(*logs, strict=True)]
        agree = [100 * math.fsum(float(pair[i]["agreement"]) for pair in pairs) / len(pairs) for i in (0, 1)]
        lines.append(
            f"{share:.0%} of the parameters: auto nearer than svd on {nearer} of {len(pairs)}, KL (geometric mean) "
            f"{kls[0]:.4g} -> {kls[1]:.4g}, agreement {agree[0]:.1f} -> {agree[1]:.1f} %"
        )
    return "\n".join(lines)


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
        run("efficientnet_lite0", teacher, test, digest(options.assets), results)
    say(verdict(results))


if __name__ == "__main__":
    main()
