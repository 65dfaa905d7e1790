"""Trials of a zoo: students with bent allocations, made and judged once, to train hypernetworks on many times.

    python -m lightning_modules.trials --zoo runs/zoo_large --out runs/trials [--budgets 12] [--pairs 12] [--seed 0]
        [--only NAME ...] [--device cpu]

A file for each teacher, written whole; a teacher whose file is there is not tried again, so an interrupted run goes on
where it stopped, and several may run at once on teachers of their own (``--only``). Teachers of the split ``heldout``
are never read. On one CPU core a student of a small teacher takes about half a second.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from hypercompress.data import Preprocess
from hypercompress.errors import DataError, HypercompressError
from hypercompress.meta import budget_at, prepare_case
from hypercompress.meta.judge import Sample
from hypercompress.meta.trials import Trials, make_trials, read_trials, write_trials
from hypercompress.models import load_model
from hypercompress.specs import COUNTED, Afterwards, Budget
from lightning_modules.episodes import Entry, Member, images_of, read_index

PLACES = 0.6  # of the range of budgets (`budget_at`), from the hardest


@dataclass(frozen=True)
class Draws:
    """How many trials of each teacher, and on what.

    Args:
        budgets: of each teacher, both units in turn.
        pairs: of students at each budget.
        steps: of distillation at every third budget; students of the others are refitted.
        images: of a distillation batch.
        calibration: images behind the curvature.
        refit: images to refit on, of these.
        judged: images to judge on, others.
        seed: of all that is drawn.
    """

    budgets: int = 12
    pairs: int = 12
    steps: int = 20
    images: int = 64
    calibration: int = 1024
    refit: int = 512
    judged: int = 512
    seed: int = 0


def open_member(entry: Entry, draws: Draws, device: torch.device) -> Member:
    """The teacher with its images; of few images half are for the curvature."""
    teacher, _ = load_model(str(entry.folder))
    images = images_of(entry.data, Preprocess.of(teacher), train=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(draws.seed))
    count = min(draws.calibration, len(images) // 2)
    calibration = images[order[:count]].to(device)
    rest = images[order[count:]]
    case = prepare_case(entry.name, teacher.to(device), calibration.split(128))
    judged = rest[: draws.judged].to(device)
    train = rest[draws.judged :]
    return Member(case, calibration[: draws.refit], train if len(train) else rest, judged)


def trials_of(member: Member, draws: Draws, place: int) -> Iterator[Trials]:
    """All trials of one teacher, the number ``place`` of its zoo."""
    generator = torch.Generator().manual_seed(1_000_003 * draws.seed + place)
    judged, device = list(member.held_out.split(256)), member.held_out.device
    for number in range(draws.budgets):
        unit = COUNTED[number % 2]
        budget: Budget = budget_at(member.case, unit, PLACES * float(torch.rand((), generator=generator)))
        after = Afterwards(draws.steps) if number % 3 == 2 else Afterwards(refit=True)
        chosen = [torch.randint(len(member.train), (draws.images,), generator=generator) for _ in range(after.steps)]
        batches = [member.train[index].to(device) for index in chosen]
        sample = Sample(judged, member.calibration, batches)
        yield make_trials(member.case, budget, after, sample, draws.pairs, generator)


def build(entries: Sequence[Entry], chosen: Sequence[str], draws: Draws, out: Path, device: torch.device) -> None:
    """Make the files that are missing."""
    console = Console()
    out.mkdir(parents=True, exist_ok=True)
    for place, entry in enumerate(entries):
        file = out / f"{entry.name}.safetensors"
        if entry.name not in chosen or file.is_file():
            continue
        start, found = time.perf_counter(), []
        member = open_member(entry, draws, device)
        for trials in trials_of(member, draws, place):
            found.append(trials)
            best = min(costs.kl for costs in (*trials.plus, *trials.minus))
            what = f"{trials.budget.unit} {trials.budget.share:.3f}, {trials.after.steps} steps"
            console.print(f"{entry.name}, {what}: KL {trials.base.kl:.4f}, best of {2 * draws.pairs} {best:.4f}")
        write_trials(found, file)
        console.print(f"{entry.name}: {len(found)} budgets in {time.perf_counter() - start:.0f} s")


def read_folder(folder: Path, entries: Sequence[Entry]) -> dict[str, list[Trials]]:
    """Trials by split of their teachers.

    Raises:
        DataError: no file of a teacher of these.
    """
    found: dict[str, list[Trials]] = {}
    for entry in entries:
        file = folder / f"{entry.name}.safetensors"
        if file.is_file():
            found.setdefault(entry.split, []).extend(read_trials(file))
    if not found.get("train"):
        raise DataError(
            f"received {folder} without trials; expected some; run python -m lightning_modules.trials first"
        )
    return found


def main(words: Sequence[str] | None = None) -> int:
    """The program; 0, or 2 with one line on bad input."""
    parser = argparse.ArgumentParser(prog="python -m lightning_modules.trials", description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", type=Path, default=Path("runs/zoo_large"))
    parser.add_argument("--out", type=Path, default=Path("runs/trials"))
    parser.add_argument("--budgets", type=int, default=12, help="of each teacher (default: 12)")
    parser.add_argument("--pairs", type=int, default=12, help="of students at each budget (default: 12)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="names of teachers; default all but the held-out ones")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(words)
    try:
        entries = read_index(options.zoo)
        names = [entry.name for entry in entries]
        if unknown := sorted(set(options.only or ()) - set(names)):
            raise DataError(f"received --only {' '.join(unknown)}; expected names of {options.zoo}: {', '.join(names)}")
        draws = Draws(options.budgets, options.pairs, seed=options.seed)
        build(entries, options.only or names, draws, options.out, torch.device(options.device))
    except HypercompressError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", markup=False, highlight=False)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
