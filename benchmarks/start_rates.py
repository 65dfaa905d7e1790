"""Distillation at rates in proportion to Polyak's step at the start or to the root of its KL, and at fixed ones.

    python -m benchmarks.start_rates --root DATA --teacher FOLDER [FOLDER ...] [--shares 0.5 0.3 0.15 0.08 0.04]
        [--per-step 0.5 1 2 4] [--per-root ...] [--fixed 0.0005] [--steps 40 100] [--out benchmarks/results]

Starts, images and folders as `benchmarks.norm_modes`; AdamW on logits with batches of 128, BatchNorms as a run chooses
(`lightning_modules.norms`), the KL and its gradient those of the first batch, as a run of ``lr: auto`` measures them
(`lightning_modules.rates`). KL on 2,000 test images. Writes ``start_rates.csv`` and prints the geometric mean of the KL
after the steps over that before them for each proportion, of the teachers that were named, by steps and by how near the
start was. One CPU core: a quarter of a minute to three a row.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from benchmarks.prediction import data_of
from benchmarks.shared.common import RESULTS, Results, digest, fidelity, markdown, say
from benchmarks.shared.distillation import Recipe, costs_of, distil
from benchmarks.shared.starts import BANDS, BATCH, log_ratio, open_starts, told
from lightning_modules.norms import COSTS
from lightning_modules.rates import kl_and_slope

KEY = ("teacher", "weights", "share", "steps", "way")
ROOT, STEP = "{:g} x root", "{:g} x step"


def run(folder: Path, data: str, options: argparse.Namespace, results: Results) -> None:
    """All rows of a teacher that are missing."""
    ways = [STEP.format(c) for c in options.per_step] + [ROOT.format(c) for c in options.per_root]
    ways += [f"{rate:g}" for rate in options.fixed]
    made = {"teacher": folder.name, "weights": digest(folder)}
    missing = {
        share: [
            (steps, way)
            for steps in options.steps
            for way in ways
            if not results.has({**made, "share": share, "steps": steps, "way": way})
        ]
        for share in options.shares
    }
    if not any(missing.values()):
        return
    starts = open_starts(folder, data)
    for share in (share for share, chosen in missing.items() if chosen):
        start = starts.start(share)
        if start is None:
            continue
        before, costs = fidelity(starts.teacher, start, starts.test), costs_of(start, starts.first)
        kl, slope = (float(value) for value in kl_and_slope(start, starts.first.images, starts.first.logits))
        for steps, way in missing[share]:
            rate = rate_of(way, kl, slope)
            frozen = costs is not None and costs > COSTS
            recipe = Recipe("adamw", rate, steps=steps, batch=BATCH, frozen_norms=frozen)
            after = fidelity(starts.teacher, distil(start, starts.train, recipe, 0), starts.test)
            row = {
                "teacher": folder.name,
                "share": share,
                "steps": steps,
                "way": way,
                "rate": rate,
                "frozen": frozen,
                "kl_first": kl,
                "slope": slope,
                "kl_start": before.kl,
                "kl": after.kl,
                "top1_start": before.top1_student,
                "top1": after.top1_student,
                "top1_teacher": after.top1_teacher,
            }
            results.add({**row, "weights": made["weights"]})
            say(f"{folder.name}, {share:.0%}, {steps} steps, {way}: KL {before.kl:.5f} -> {after.kl:.5f}")


def rate_of(way: str, kl: float, slope: float) -> float:
    """The learning rate that a name stands for.

    Args:
        way: of the form of `STEP` or `ROOT`, or a number.
        kl, slope: of the first batch of steps, and the 1-norm of its gradient.
    """
    number, *unit = way.split(" x ")
    units = {"root": math.sqrt(max(0.0, kl)), "step": max(0.0, kl) / slope if slope else 0.0}
    return float(number) * (units[unit[0]] if unit else 1.0)


def verdict(found: Sequence[Mapping[str, str]]) -> str:
    """A line for each number of steps and band of starts: what the steps make of the KL at each rate."""
    columns = sorted({row["way"] for row in found}, key=_order)
    lines, gains = list[list[str]](), list[str]()
    for steps in sorted({int(row["steps"]) for row in found}):
        students = _students([row for row in found if int(row["steps"]) == steps])
        for low, high in [*zip((0.0, *BANDS), BANDS, strict=False), (0.0, math.inf)]:
            ratios = [
                {way: log_ratio(row) for way, row in rows.items()}
                for rows in students
                if all(low <= float(row["kl_start"]) < high for row in rows.values())
            ]
            if ratios:
                each = [told([of[way] for of in ratios]) if way in ratios[0] else "-" for way in columns]
                best = told([min(of.values()) for of in ratios])
                lines.append([str(steps), f"{low:g} to {high:g}", str(len(ratios)), *each, best])
        gained = {
            way: fmean(100 * (float(rows[way]["top1"]) - float(rows[way]["top1_start"])) for rows in students)
            for way in (way for way in columns if students and way in students[0])
        }
        listed = ", ".join(f"{way} {points:+.2f}" for way, points in gained.items())
        gains.append(f"Top-1 by {steps} steps, points: {listed}")
    table = markdown(("steps", "KL before", "students", *columns, "the best of each"), lines)
    return "\n\n".join((table, "\n".join(gains)))


def _students(rows: Sequence[Mapping[str, str]]) -> list[dict[str, Mapping[str, str]]]:
    """Rows of one number of steps by student and way: of the students that have every way."""
    found: dict[tuple[str, ...], dict[str, Mapping[str, str]]] = {}
    for row in rows:
        found.setdefault((row["teacher"], row["weights"], row["share"]), {})[row["way"]] = row
    ways = {row["way"] for row in rows}
    return [of for of in found.values() if set(of) == ways]


def _order(way: str) -> tuple[bool, str, float]:
    """Proportions before fixed rates, each from the lowest."""
    number, *unit = way.split()
    return not unit, " ".join(unit), float(number)


def main(words: Sequence[str] | None = None) -> int:
    """The program."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder that the data sets lie in")
    parser.add_argument("--teacher", type=Path, nargs="+", required=True, metavar="FOLDER", help="student folders")
    parser.add_argument("--shares", type=float, nargs="+", default=(0.5, 0.3, 0.15, 0.08, 0.04), help="of parameters")
    parser.add_argument("--per-step", type=float, nargs="*", default=(0.5, 1, 2, 4), help="times Polyak's step")
    parser.add_argument("--per-root", type=float, nargs="*", default=(), help="times the root of the KL")
    parser.add_argument("--fixed", type=float, nargs="*", default=(5e-4,), help="rates that are the same for all")
    parser.add_argument("--steps", type=int, nargs="+", default=(40, 100), help="of distillation (default: 40 100)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the CSV goes")
    options = parser.parse_args(words)
    results = Results(options.out / "start_rates.csv", KEY)
    for folder in options.teacher:
        run(folder, data_of(folder, options.root), options, results)
    named = {(folder.name, digest(folder)) for folder in options.teacher}
    say(verdict([row for row in results.rows if (row["teacher"], row["weights"]) in named]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
