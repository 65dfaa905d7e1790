"""The held-out protocol (docs/heldout.md): every method on teachers that meta-training has never read.

    python -m benchmarks.heldout --zoo runs/zoo_large --root DATA [--hypernet FOLDER] [--teachers NAME ...]
        [--methods NAME ...] [--ablations] [--levels 0.95 0.8 0.5] [--units params macs] [--steps 0 20 100 500]
        [--seeds 3] [--rates 0.001 0.003 0.01] [--device cpu] [--out benchmarks/results]
    python -m benchmarks.heldout --merge FOLDER [FOLDER ...] [--teachers NAME ...] [--out benchmarks/results]

Writes ``heldout_budgets.csv``, ``heldout.csv``, ``heldout.png``, ``heldout_free.png`` and the verdict, ``heldout.md``;
with ``--merge`` and ``--teachers`` it prints the verdict of these alone. Rows that are there are not made again.
Programs that run at once write to folders of their own, which ``--merge`` joins. One CPU core: about a second a row
without distillation, minutes with 500 steps at three rates.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from benchmarks.protocol import budgets, rows
from benchmarks.protocol.budgets import LEVELS, Cell, cells, find_budgets
from benchmarks.protocol.figures import distilled_figure, free_figure
from benchmarks.protocol.methods import (
    ABLATIONS,
    OTHER,
    WITH_IMAGES,
    WITHOUT_IMAGES,
    Case,
    Hypernetworks,
    draws,
    refitted_both,
    table,
    tilted,
)
from benchmarks.protocol.rows import Settings, measure
from benchmarks.protocol.students import Starts
from benchmarks.protocol.subject import Entry, Sizes, Subject, open_subject, read_entries
from benchmarks.protocol.verdict import verdict
from benchmarks.shared.common import RESULTS, Results, say
from hypercompress.errors import DataError, HypercompressError
from hypercompress.specs import COUNTED, Unit

STEPS = (0, 20, 100, 500)
HEADER = """# The verdict of the held-out protocol

Made by `python -m benchmarks.heldout` from `heldout.csv`, whose rows name weights, commit and hardware. Gap: the
teacher's top-1 minus the student's, in points. Way: share of the distance from the best closed form without images to
`kfac` with them. After ± standard errors between networks."""
METHODS = tuple(dict.fromkeys((*WITH_IMAGES, *WITHOUT_IMAGES)))


@dataclass(frozen=True)
class Work:
    """What is to be done for each teacher.

    Args:
        cases: methods and steps.
        units, levels: budgets.
        seeds: repetitions.
        device: where networks run, as torch names it.
    """

    hypernetworks: Hypernetworks
    cases: Sequence[Case]
    settings: Settings
    units: Sequence[Unit] = COUNTED
    levels: Sequence[float] = LEVELS
    seeds: int = 3
    device: str = "cpu"


def tables(out: Path) -> tuple[Results, Results]:
    """The budgets and the rows in a folder."""
    found = Results(out / "heldout_budgets.csv", budgets.KEY, budgets.MADE_OF)
    return found, Results(out / "heldout.csv", rows.KEY, rows.MADE_OF)


def run(entry: Entry, work: Work, out: Path) -> None:
    """All rows of a teacher that are missing; the teacher is read only if there is one."""
    known, results = tables(out)

    @cache
    def subject() -> Subject:
        say(f"{entry.name}: reading {entry.data} and asking the teacher")
        return open_subject(entry, work.settings.sizes, work.device)

    find_budgets(entry, work.settings.sizes, subject, known, work.units)
    every = cells(entry, known, work.units, LEVELS)
    chosen = [cell for cell in every if cell.level in work.levels]
    for seed in range(work.seeds):
        starts: Starts | None = None
        for case, cell in ((case, cell) for cell in chosen for case in work.cases):
            row = _named(entry, work, case, cell, seed)
            if results.has(row) or (seed > 0 and not draws(case)):
                continue
            starts = starts or Starts(subject(), work.hypernetworks, seed, every)
            found = measure(subject(), starts, case, cell, work.settings)
            results.add({**{name: row[name] for name in (*rows.KEY, "share")}, "family": entry.family, **found, **row})
            say(_line(row, found))


def _named(entry: Entry, work: Work, case: Case, cell: Cell, seed: int) -> dict[str, Any]:
    return {
        "teacher": entry.name,
        "method": case.method,
        "statistics": case.statistics,
        "unit": str(cell.unit),
        "level": cell.level,
        "steps": case.steps,
        "seed": seed,
        "share": cell.share,
        "weights": work.hypernetworks.weights(case.method, entry.weights),
        "settings": work.settings.text(case.steps, refit=refitted_both(case), tilt=tilted(case)),
    }


def _line(row: dict[str, Any], found: dict[str, Any]) -> str:
    what = f"{row['teacher']}, {row['unit']} {row['level']:.0%}, {row['method']} ({row['statistics']})"
    end = found["note"] if found["top1"] is None else f"{found['top1_start']:.4f} -> {found['top1']:.4f}"
    return f"{what}, {row['steps']} steps, seed {row['seed']}: {end}"


def show(out: Path, only: Sequence[str] | None = None) -> None:
    """The figures and the verdict, from the tables alone; of ``only`` some teachers the verdict, which is not kept."""
    known, results = tables(out)
    text = verdict(known, results, only)
    if results.rows and only is None:
        distilled_figure(results, out / "heldout.png")
        free_figure(results, out / "heldout_free.png")
        (out / "heldout.md").write_text(f"{HEADER}\n\n{text}\n")
    say(text)


def merge(folders: Sequence[Path], out: Path) -> None:
    """Join the tables of several runs; where two have a row of the same key the later folder's stays.

    Raises:
        DataError: a folder without the tables.
    """
    for place, name in enumerate(("heldout_budgets.csv", "heldout.csv")):
        for folder in folders:
            if not (folder / name).is_file():
                raise DataError(
                    f"received --merge {folder} without {name}; expected the --out of a run; check the path"
                )
            tables(out)[place].absorb(folder / name)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--zoo", type=Path, metavar="FOLDER", help="zoo with held-out teachers")
    parser.add_argument("--root", default="~/.cache/hypercompress", help="folder that the data sets lie in")
    parser.add_argument("--hypernet", type=Path, metavar="FOLDER", help="hypernetwork (default: the released one)")
    parser.add_argument("--other", nargs="+", default=[], metavar="NAME=FOLDER", help="further ones: hypernet@NAME")
    parser.add_argument("--teachers", nargs="+", metavar="NAME", help="with --merge: of the verdict (default: all)")
    parser.add_argument("--methods", nargs="*", choices=[*METHODS, *ABLATIONS], default=METHODS, help="default: all")
    parser.add_argument("--ablations", action="store_true", help="the ablations too")
    parser.add_argument("--levels", nargs="+", type=float, choices=LEVELS, default=LEVELS, help="default: all")
    parser.add_argument("--units", nargs="+", choices=[str(unit) for unit in COUNTED], default=COUNTED)
    parser.add_argument("--steps", nargs="+", type=int, default=STEPS, help="of distillation (default: 0 20 100 500)")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions (default: 3)")
    parser.add_argument("--rates", nargs="+", type=float, default=(1e-3, 3e-3, 1e-2), help="learning rates to try")
    for name, default in vars(Sizes()).items():
        parser.add_argument(f"--{name}-images", type=int, default=default, help=f"at most (default: {default})")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--merge", nargs="+", type=Path, metavar="FOLDER", help="join the tables of these, run nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the files go (default: benchmarks/results)")
    options = parser.parse_args(words)
    if options.zoo is None and options.merge is None:
        parser.error("received neither --zoo nor --merge; expected one of them; name the zoo's folder")
    return options


def work_of(options: argparse.Namespace) -> Work:
    """What the command line asks for.

    Raises:
        DataError: a number of images, steps, seeds or a rate out of range, or an --other that is no NAME=FOLDER.
    """
    sizes = Sizes(**{name: getattr(options, f"{name}_images") for name in vars(Sizes())})
    least = {**vars(sizes), "rates": min(options.rates), "seeds": options.seeds, "steps": min(options.steps) + 1}
    low = [f"{name} {value:g}" for name, value in least.items() if value <= 0]
    pairs = [text.partition("=") for text in options.other]
    low += [f"--other {''.join(pair)}" for pair in pairs if not pair[0] or not pair[2] or not Path(pair[2]).is_dir()]
    if low:
        raise DataError(
            f"received {', '.join(low)}; expected numbers above 0, steps from 0, and NAME=FOLDER; mend them"
        )
    others = {name: Path(folder) for name, _, folder in pairs}
    methods = [*options.methods, *(ABLATIONS if options.ablations else ()), *(OTHER + name for name in others)]
    return Work(
        Hypernetworks(options.hypernet, others),
        table(list(dict.fromkeys(methods)), sorted(set(options.steps))),
        Settings(sizes, tuple(options.rates)),
        [unit for unit in COUNTED if unit in options.units],
        options.levels,
        options.seeds,
        options.device,
    )


def main(words: Sequence[str] | None = None) -> int:
    """The program; 0, or 2 with one line on bad input."""
    options = parse(words)
    try:
        if options.merge is not None:
            merge(options.merge, options.out)
        else:
            work = work_of(options)
            for entry in read_entries(options.zoo, str(Path(options.root).expanduser()), options.teachers):
                run(entry, work, options.out)
    except HypercompressError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    show(options.out, options.teachers if options.merge is not None else None)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
