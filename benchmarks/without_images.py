"""Without images of the model's own kind: what ``auto`` makes of none (`kfac` on noise, BatchNorms renormalised to it)
beside what else there is.

    python -m benchmarks.without_images --root DATA --teacher FOLDER [FOLDER ...] [--assets ASSETS]
        [--methods ...] [--draws 3] [--out benchmarks/results]

Students at mild to middling shares of the parameters; KL and agreement with the teacher on up to 2,000 test images.
``svd`` and ``prior`` read the weights, as does ``hypernet``, the released one; ``kfac-gauss`` and ``kfac-pink`` are
calibrated on white and on 1/f noise as it is, and are not refitted to it; ``auto`` is the default of ``generate``,
refit and all. ``unlike`` and ``unlike-renormalized`` are ``kfac`` on as many images of another kind, as they are and
with ``--renormalize``: the rendered `glyphs` for networks of Fashion-MNIST, else the packaged pictures of clothes.
``kfac-synthetic`` is ``kfac`` with ``--data synthetic``, made only if ``--methods`` names it: that takes minutes to
hours. What depends on noise is drawn ``--draws`` times.

``--teacher`` takes folders of the zoo (`lightning_modules.zoo`), whose index says what data each was trained on;
``--assets`` adds EfficientNet-Lite0 (`efficientnet_lite0`) and its photographs. Writes ``without_images.csv``; rows
that are there are not made again. One CPU core, five to fifteen minutes a teacher.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from torch import nn

from benchmarks.efficientnet_lite0 import file_of, open_teacher
from benchmarks.prediction import data_of
from benchmarks.protocol.methods import CLOSED_FORMS, IMAGINED, NOISES, SYNTHETIC
from benchmarks.protocol.noise import images_of
from benchmarks.shared.common import RESULTS, Results, Set, digest, fidelity, read_set, say
from benchmarks.shared.pairs import LEAST, TEST
from hypercompress.compress import finish
from hypercompress.errors import BudgetError
from hypercompress.generator.registry import RELEASED
from hypercompress.models import load_model
from hypercompress.preparation import Plan, prepare
from hypercompress.specs import Budget
from hypercompress.synthetic.inversion import usual_images
from hypercompress.synthetic.stand_in import BATCH

SHARES = (0.95, 0.9, 0.8, 0.6, 0.4, 0.2)
AUTO, MADE = "auto", SYNTHETIC[0]
UNLIKE, RENORMALIZED = "unlike", "unlike-renormalized"
HYPERNET = "hypernet"
METHODS = (*CLOSED_FORMS, HYPERNET, AUTO, UNLIKE, RENORMALIZED, MADE)
DRAWN = (*NOISES, AUTO, MADE)  # depend on noise
KEY = ("teacher", "share", "asked", "draw")
CLOTHES = "fashion_mnist"
OTHERS = {True: "glyphs", False: "fashion_mnist_mini"}  # by whether the teacher knows clothes
REAL = "efficientnet_lite0"


@dataclass(frozen=True)
class Subject:
    """A teacher and what it is judged by.

    Args:
        weights: their digest.
        test: images of its own kind.
        unlike: DATA of another kind.
    """

    name: str
    teacher: nn.Module
    weights: str
    test: Set
    unlike: str


def run(subject: Subject, methods: Sequence[str], draws: int, results: Results) -> None:
    """All rows of a teacher that are missing."""
    name, teacher = subject.name, subject.teacher
    for asked, draw in ((method, draw) for method in methods for draw in range(draws if method in DRAWN else 1)):
        weights = subject.weights + (f"+{digest(RELEASED)}" if asked == HYPERNET else "")
        key = {"teacher": name, "asked": asked, "draw": draw, "weights": weights}
        missing = [share for share in SHARES if not results.has({**key, "share": share})]
        if not missing:
            continue
        plan = planned(subject, asked, draw)
        for share in missing:
            try:
                student = finish(plan, Budget(params=share), refit=asked not in NOISES, norms=asked not in NOISES)
            except BudgetError as error:
                say(f"{name}: {error}")
                continue
            found = fidelity(teacher, student, subject.test)
            made = {"generator": plan.generator.name, "noise": plan.stand_in, "refitted": student.report["refitted"]}
            results.add({**key, "share": share, **made, "kl": found.kl, "agreement": found.agreement})
        say(f"{name}: {asked} is {plan.generator.name}, draw {draw}")


def planned(subject: Subject, asked: str, draw: int) -> Plan:
    """The teacher, measured for a method."""
    teacher, images = subject.teacher, subject.test.images
    if asked in (UNLIKE, RENORMALIZED):
        usual = usual_images(images.shape[1:])
        other = read_set(teacher, subject.unlike, train=True, limit=usual, shuffled=True)
        return prepare(teacher, other.images.split(BATCH), "kfac", renormalize=asked == RENORMALIZED, seed=draw)
    if asked not in IMAGINED:
        return prepare(teacher, None, asked, example=images[:2], seed=draw)
    channels, height, width = images.shape[1:]
    size = (channels, height, width)
    made = images_of(IMAGINED[asked], teacher, usual_images(size), size, draw)
    return prepare(teacher, made.split(BATCH), "kfac", seed=draw)


def verdict(results: Results) -> str:
    """For the zoo's networks, and for EfficientNet-Lite0, a line for each share and method: KL, agreement, and on how
    many networks ``auto`` is nearer, each the mean over its draws; then the same of the best closed form of each, by
    agreement on the test images. ``auto`` where noise failed, so that the weights were read, is left out.
    """
    lines = []
    for group in ("the others", REAL):
        rows = [row for row in results.rows if (row["teacher"] == REAL) == (group == REAL)]
        for share in SHARES:
            means = {asked: _means([r for r in rows if float(r["share"]) == share], asked) for asked in METHODS}
            means["best closed form"] = {
                name: max((means[asked][name] for asked in CLOSED_FORMS), key=lambda mean: mean[1])
                for name in set.intersection(*(set(means[asked]) for asked in CLOSED_FORMS))
            }
            lines += [
                f"{group}, {share:.0%} of the parameters, {asked}: {_compared(found, means[AUTO])}"
                for asked, found in means.items()
                if found
            ]
    return "\n".join(lines)


def _means(rows: Sequence[Mapping[str, str]], asked: str) -> dict[str, tuple[float, float]]:
    """By teacher: the mean logarithm of the KL, and the mean agreement, of all draws of a method."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        if row["asked"] == asked and not (asked == AUTO and row["noise"] == "0"):
            pair = math.log(max(float(row["kl"]), LEAST)), float(row["agreement"])
            found.setdefault(row["teacher"], []).append(pair)
    return {name: (fmean([kl for kl, _ in of]), fmean([share for _, share in of])) for name, of in found.items()}


def _compared(found: Mapping[str, tuple[float, float]], auto: Mapping[str, tuple[float, float]]) -> str:
    """What `verdict` says of a method."""
    kl, agreement = (fmean([mean[i] for mean in found.values()]) for i in (0, 1))
    text = f"{len(found)} networks, KL (geometric mean) {math.exp(kl):.4g}, agreement {100 * agreement:.1f} %"
    both = [(mean, auto[name]) for name, mean in found.items() if name in auto]
    if found is auto or not both:
        return text
    nearer, oftener = (sum(sign * (mine[i] - other[i]) > 0 for other, mine in both) for i, sign in ((0, -1), (1, 1)))
    return f"{text}; auto is nearer on {nearer}, agrees more often on {oftener} of {len(both)}"


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, metavar="DATA", help="folder that the data sets lie in")
    parser.add_argument("--teacher", type=Path, nargs="*", default=[], metavar="FOLDER", help="folders of the zoo")
    parser.add_argument("--assets", type=Path, metavar="ASSETS", help="folder of EfficientNet-Lite0 and photographs")
    usual = [asked for asked in METHODS if asked != MADE]
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=usual, help=f"default: all but {MADE}")
    parser.add_argument("--draws", type=int, default=3, help="of noise (default: 3)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the file goes (default: benchmarks/results)")
    options = parser.parse_args(words)
    results = Results(options.out / "without_images.csv", KEY)
    for folder in options.teacher:
        teacher, _ = load_model(str(folder))
        data = data_of(folder, options.root)
        test = read_set(teacher, data, train=False, limit=TEST)
        subject = Subject(folder.name, teacher, digest(folder), test, OTHERS[data.startswith(CLOTHES)])
        run(subject, options.methods, options.draws, results)
    if options.assets is not None:
        teacher, _ = open_teacher(options.assets)
        test = read_set(teacher, str(options.assets / "photos"), train=False)
        subject = Subject(REAL, teacher, digest(file_of(options.assets)), test, OTHERS[False])
        run(subject, options.methods, options.draws, results)
    say(verdict(results))


if __name__ == "__main__":
    main()
