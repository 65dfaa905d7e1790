"""Distillation with BatchNorms in training mode, with frozen ones, and as the run chooses.

    python -m benchmarks.norm_modes --root DATA --teacher FOLDER [FOLDER ...] [--shares 0.5 0.3 0.15 0.08 0.04]
        [--rates 0.0005 0.002] [--steps 100] [--out benchmarks/results]

`kfac` students of 1,024 calibration images, finished as ``generate`` finishes them, then distilled on logits with
batches of 128; the choice is that of `lightning_modules.norms` from the first batch. KL and top-1 on 2,000 test images.
``--teacher`` takes folders of the zoo (`lightning_modules.zoo`), whose index says what data each was trained on
(others: Fashion-MNIST). Writes ``norm_modes.csv`` and prints the geometric mean of the KL after the steps over that
before them, by how near the start was, and what becomes of top-1. One CPU core: half a minute to five a size.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.prediction import data_of
from benchmarks.shared.common import RESULTS, Results, digest, fidelity, markdown, say
from benchmarks.shared.distillation import Recipe, costs_of, distil
from benchmarks.shared.starts import BANDS, BATCH, log_ratio, open_starts, told
from hypercompress.running.norms import remembering_norms
from lightning_modules.norms import COSTS

KEY = ("teacher", "share", "rate", "steps", "norms")
WAYS = {"training": False, "frozen": True}


@dataclass(frozen=True)
class Work:
    """What is tried on each student."""

    shares: Sequence[float]
    rates: Sequence[float]
    steps: int


def run(folder: Path, data: str, work: Work, results: Results) -> None:
    """All rows of a teacher that are missing."""
    made = {"teacher": folder.name, "steps": work.steps, "weights": digest(folder)}
    ways = [(rate, norms) for rate in work.rates for norms in WAYS]
    missing = {
        share: [way for way in ways if not results.has({**made, "share": share, "rate": way[0], "norms": way[1]})]
        for share in work.shares
    }
    if not any(missing.values()):
        return
    starts = open_starts(folder, data)
    if not remembering_norms(starts.teacher):
        say(f"{folder.name} has no BatchNorm")
        return
    for share in (share for share, chosen in missing.items() if chosen):
        start = starts.start(share)
        if start is None:
            continue
        before, costs = fidelity(starts.teacher, start, starts.test), costs_of(start, starts.first)
        for rate, norms in missing[share]:
            recipe = Recipe("adamw", rate, steps=work.steps, batch=BATCH, frozen_norms=WAYS[norms])
            after = fidelity(starts.teacher, distil(start, starts.train, recipe, 0), starts.test)
            row = {
                "teacher": folder.name,
                "share": share,
                "rate": rate,
                "steps": work.steps,
                "norms": norms,
                "kl_start": before.kl,
                "kl": after.kl,
                "top1_start": before.top1_student,
                "top1": after.top1_student,
                "top1_teacher": after.top1_teacher,
                "costs": costs,
            }
            results.add({**row, "weights": made["weights"]})
            say(f"{folder.name}, {share:.0%}, {rate:g}, {norms}: KL {before.kl:.4f} -> {after.kl:.4f}")


def verdict(results: Results) -> str:
    """A line for each rate and band of starts: what the steps make of the KL in either mode, and as chosen."""
    lines = []
    for rate, steps in sorted({(float(row["rate"]), int(row["steps"])) for row in results.rows}):
        rows = [row for row in results.rows if float(row["rate"]) == rate and int(row["steps"]) == steps]
        for low, high in zip((0.0, *BANDS), BANDS, strict=False):
            found = [row for row in rows if low <= float(row["kl_start"]) < high]
            ways = [[row for row in found if row["norms"] == way] for way in WAYS]
            ways.append([row for row in found if WAYS[row["norms"]] == (float(row["costs"]) > COSTS)])
            if not found:
                continue
            band = f"{low:g} to {high:g}"
            lines.append(
                [
                    f"{rate:g}",
                    str(steps),
                    band,
                    str(len(ways[0])),
                    *(told([log_ratio(row) for row in way]) for way in ways),
                ]
            )
    table = markdown(("rate", "steps", "KL before", "students", *WAYS, "as chosen"), lines)
    return f"{table}\n\n{_top1(results)}"


def _top1(results: Results) -> str:
    """What freezing does to the accuracy of the students that it is chosen for, a sentence for each rate."""
    lines = []
    for rate in sorted({float(row["rate"]) for row in results.rows}):
        rows = [row for row in results.rows if float(row["rate"]) == rate and float(row["costs"]) > COSTS]
        training, frozen = (
            {
                (row["teacher"], row["share"], row["steps"]): 100 * float(row["top1"])
                for row in rows
                if row["norms"] == way
            }
            for way in WAYS
        )
        gains = [right - training[start] for start, right in frozen.items() if start in training]
        mean, more, fewer = sum(gains) / max(1, len(gains)), sum(g > 0 for g in gains), sum(g < 0 for g in gains)
        lines.append(
            f"Rate {rate:g}: {len(gains)} students are to be frozen; top-1 is {mean:+.2f} points in the mean, "
            f"higher for {more}, lower for {fewer}"
        )
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder that the data sets lie in")
    parser.add_argument("--teacher", type=Path, nargs="+", required=True, metavar="FOLDER", help="student folders")
    parser.add_argument("--shares", type=float, nargs="+", default=(0.5, 0.3, 0.15, 0.08, 0.04), help="of parameters")
    parser.add_argument("--rates", type=float, nargs="+", default=(5e-4, 2e-3), help="of AdamW")
    parser.add_argument("--steps", type=int, default=100, help="of distillation (default: 100)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the CSV goes")
    options = parser.parse_args(words)
    results = Results(options.out / "norm_modes.csv", KEY)
    work = Work(options.shares, options.rates, options.steps)
    for folder in options.teacher:
        run(folder, data_of(folder, options.root), work, results)
    say(verdict(results))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
