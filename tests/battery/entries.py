"""The contract on every entry point of timm that is not huge, and on larger ones, one row each in `entries.csv`.

    python -m tests.battery.entries              run what has no row yet (all: 1 h 45 min on a shared core)
    python -m tests.battery.entries --up-to 60   and larger ones, in millions of parameters (about a minute each)
    python -m tests.battery.entries NAME ...     run these again
    python -m tests.battery.entries --part 0/2   every second one: two programs at once, with `--out` of their own

A stopped run goes on where it was. As at each commit (`coverage.verify`), one layer of each role is factored in models
of more than a million parameters, here at the models' own sizes; the slow tests of `test_modules.py` factor all layers.
"""

import argparse
import csv
from pathlib import Path

import torch

from tests.battery import coverage
from tests.battery.registry import HUGE, Entry, read

ENTRIES = tuple(sorted(read(), key=lambda entry: entry.params))


def write(results: dict[str, str], table: Path) -> None:
    """All rows, in the order of `models.csv`."""
    with table.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("model", "result"))
        writer.writerows((entry.model, results[entry.model]) for entry in read() if entry.model in results)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="entry points (default: those without a row)")
    parser.add_argument("--part", default="0/1", help="I/N: every N-th entry point, from the I-th")
    parser.add_argument("--out", type=Path, default=coverage.ENTRIES, help="the table (default: %(default)s)")
    parser.add_argument("--up-to", type=float, default=HUGE / 1e6, help="millions of parameters (default: %(default)g)")
    args = parser.parse_args()
    unknown = set(args.names) - {entry.model for entry in ENTRIES}
    if unknown:
        parser.error(f"received {', '.join(sorted(unknown))}; expected names in models.csv")
    first, every = (int(number) for number in args.part.split("/"))
    torch.set_num_threads(1)
    results = coverage.entries(args.out)

    def wanted(entry: Entry) -> bool:
        return entry.model in args.names if args.names else entry.model not in results

    chosen = [entry for entry in ENTRIES if args.names or entry.params < args.up_to * 1e6]
    for entry in (entry for entry in chosen[first::every] if wanted(entry)):
        results[entry.model] = coverage.result(entry, shrunk=False)
        write(results, args.out)
        print(entry.model, results[entry.model], flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
