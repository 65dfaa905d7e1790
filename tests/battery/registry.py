"""Every entry point of timm with its size, from a table: building 1,371 models to find the smallest takes minutes.

Write the table again, for another timm, with `python -m tests.battery.registry` (4 minutes, no weights in memory).
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import timm
import torch

TABLE = Path(__file__).with_name("models.csv")
HUGE = 30_000_000  # parameters; what has more is left out of the slow run
TIMM = "1.0.31"  # the table is of this one


@dataclass(frozen=True)
class Entry:
    """One entry point: the file of ``timm.models`` that defines it, its name, its parameters (1,000 classes)."""

    module: str
    model: str
    params: int


def read() -> tuple[Entry, ...]:
    with TABLE.open(newline="") as file:
        return tuple(Entry(row["module"], row["model"], int(row["params"])) for row in csv.DictReader(file))


def count() -> tuple[Entry, ...]:
    """The table as the installed timm would have it."""
    entries = []
    with torch.device("meta"):
        for module in timm.list_modules():
            for name in timm.list_models(module=module):
                model = timm.create_model(name, pretrained=False)
                entries.append(Entry(module, name, sum(p.numel() for p in model.parameters())))
    return tuple(sorted(entries, key=lambda entry: (entry.module, entry.model)))


def smallest(entries: tuple[Entry, ...]) -> tuple[Entry, ...]:
    """The smallest model of each module, by module."""
    found: dict[str, Entry] = {}
    for entry in entries:
        if entry.module not in found or entry.params < found[entry.module].params:
            found[entry.module] = entry
    return tuple(found[module] for module in sorted(found))


def main() -> None:
    with TABLE.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("module", "model", "params"))
        writer.writerows((entry.module, entry.model, entry.params) for entry in count())


if __name__ == "__main__":
    main()
