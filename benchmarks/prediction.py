"""How near the predicted KL comes to the measured one, on trained networks of several families.

    python -m benchmarks.prediction --root DATA --teacher FOLDER [FOLDER ...] [--out benchmarks/results]

`kfac` students at many budgets, refitted where held-out images say so, as ``generate`` makes them, from 1,024 training
images, of which a quarter is held out: on it one student a network is measured, which scales its predictions
(`hypercompress/probe.py`). The KL of all is measured on up to 2,048 test images. ``--teacher`` takes folders of the zoo
(`lightning_modules.zoo`), whose index says what data each was trained on (others: Fashion-MNIST). Writes
``prediction.csv`` and ``prediction.png``. Two CPU cores, about a minute a teacher.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from benchmarks.shared.common import RESULTS, Results, digest, fidelity, read_set, say
from benchmarks.shared.figures import save, values
from hypercompress.compress import finish
from hypercompress.errors import BudgetError
from hypercompress.models import load_model
from hypercompress.preparation import prepare
from hypercompress.probe import kl_scale
from hypercompress.specs import Budget, Refit
from lightning_modules.index import read_rows

SHARES = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
IMAGES, TEST = 1024, 2048
PACKAGED = ("digits", "glyphs")  # sets of the zoo that take no folder
SMALL, LARGE = 1e-4, 0.1  # nats: below, a sample of images says little; above, no quadratic can hold
FACTOR = 2.0


def data_of(folder: Path, root: str) -> str:
    """What a teacher of the zoo was trained on, as DATA; of one that its index does not know, Fashion-MNIST."""
    known = read_rows(folder.parent / "zoo.csv", ("name", "data"))
    name = known[folder.name]["data"].split(":")[0] if folder.name in known else "fashion_mnist"
    return name if name in PACKAGED else f"{name}:{root}"


def run(folder: Path, data: str, results: Results) -> None:
    """All rows of a teacher that are missing."""
    name, weights = folder.name, digest(folder)
    missing = [s for s in SHARES if not results.has({"teacher": name, "share": s, "weights": weights})]
    if not missing:
        return
    teacher, _ = load_model(str(folder))
    train = read_set(teacher, data, train=True, limit=IMAGES, shuffled=True)
    test = read_set(teacher, data, train=False, limit=TEST)
    plan = prepare(teacher, train.images.split(64), "kfac")
    scale = kl_scale(plan)
    for share in missing:
        try:
            student = finish(plan, Budget(params=share))
            bare = finish(plan, Budget(params=share), refit=False, norms=False)
        except BudgetError as error:
            say(f"{name}: {error}")
            continue
        predicted, kl = student.report["predicted_kl"], fidelity(plan.teacher, student, test).kl
        generated = fidelity(plan.teacher, bare, test).kl
        made = {"predicted_kl": predicted, "predicted_kl_generated": bare.report["predicted_kl"]}
        made |= {"kl_scale": scale.of(Refit(student.report["refitted"])), "kl_scale_generated": scale.generated}
        made |= {"kl": kl, "kl_generated": generated}
        made |= {"refitted": student.report["refitted"], "tilt": student.report["tilt"]}
        results.add({"teacher": name, "share": share, **made, "weights": weights})
        say(
            f"{name}, {share:g}: predicted {predicted:.5f} x {made['kl_scale']:.2f}, measured {kl:.5f} "
            f"({generated:.5f} bare)"
        )


def points(
    results: Results, students: str = "", teacher: str | None = None, *, scaled: bool = True
) -> list[tuple[float, float]]:
    """Predicted and measured KL of the rows whose measured one lies where a prediction can be judged.

    Args:
        students: what the columns end in: nothing for students as given, or ``_generated``.
        scaled: as one measured student says (`hypercompress/probe.py`); else of the additive model as it is.
    """
    rows = [row for row in results.rows if teacher in (None, row["teacher"])]
    pairs = [_pair(row, students, scaled=scaled) for row in rows]
    return [(predicted, kl) for predicted, kl in pairs if SMALL <= kl < LARGE]


def _pair(row: Mapping[str, str], students: str = "", *, scaled: bool = True) -> tuple[float, float]:
    """Predicted and measured KL of a row."""
    scale = float(row[f"kl_scale{students}"]) if scaled else 1.0
    return scale * float(row[f"predicted_kl{students}"]), float(row[f"kl{students}"])


def summary(results: Results) -> str:
    """How many predictions are within the factor, by what the students are."""
    lines = []
    for students, name in (("", "as given"), ("_generated", "neither refitted nor norms re-estimated")):
        for scaled in (True, False):
            found = points(results, students, scaled=scaled)
            near = sum(1 / FACTOR <= predicted / kl <= FACTOR for predicted, kl in found)
            deviation = math.sqrt(sum(math.log(predicted / kl) ** 2 for predicted, kl in found) / max(1, len(found)))
            lines.append(
                f"{name}, {'scaled by one measured student' if scaled else 'the additive model as it is'}: {near} of "
                f"{len(found)} within a factor of {FACTOR:g}, typical factor {math.exp(deviation):.2f}"
            )
    return "\n".join(lines)


def figure(results: Results, path: Path) -> None:
    """Measured against predicted KL, a colour for each teacher."""
    drawing = Figure((6.4, 5.2), layout="constrained")
    axes = drawing.subplots()
    ends = [SMALL / 3, 1.0]
    axes.plot(ends, ends, color="black", linewidth=0.8)
    axes.fill_between(ends, [e / FACTOR for e in ends], [e * FACTOR for e in ends], color="tab:gray", alpha=0.2)
    for index, name in enumerate(values(results, "teacher")):
        rows = [row for row in results.rows if row["teacher"] == name]
        found = sorted(_pair(row) for row in rows)
        axes.plot(*zip(*found, strict=True), "o-", markersize=3, linewidth=0.7, color=f"C{index % 10}", label=name)
    axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
    axes.set(
        xlabel="predicted KL, scaled by one measured student, nats",
        ylabel="measured KL, nats",
        title="grey: within a factor of two",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=6)
    save(drawing, path)


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, metavar="DATA", help="folder that the data sets lie in")
    parser.add_argument("--teacher", type=Path, nargs="+", required=True, metavar="FOLDER", help="folders of the zoo")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the files go (default: benchmarks/results)")
    options = parser.parse_args(words)
    results = Results(options.out / "prediction.csv", ("teacher", "share"))
    for folder in options.teacher:
        run(folder, data_of(folder, options.root), results)
    figure(results, options.out / "prediction.png")
    say(summary(results))


if __name__ == "__main__":
    main()
