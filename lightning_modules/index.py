"""``zoo.csv``, the index of a zoo: a row for each of its teachers, which is a folder beside it."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hypercompress.errors import DataError
from hypercompress.saved.whole_file import whole_file

COLUMNS = ("name", "family", "data", "split", "params", "macs", "top1")
AGAIN = (
    "remove it and run python -m lightning_modules.zoo again with its config (nothing that is there is trained anew)"
)
SPLITS = {
    "train": "the hypernetwork learns on them",
    "validation": "they choose its checkpoint and its settings",
    "heldout": "they judge the chosen one, once; meta-training never reads them",
}
LEFT_OUT = "left_out"  # of the one teacher that a run leaves out; no split of the zoo's


def rows_of(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of an index.

    Raises:
        DataError: it lacks one of ``columns``, a row has more cells than columns, or fewer, or it is no such file.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            there, rows = reader.fieldnames or (), list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"received {path}, which is no CSV file ({error}); expected a zoo's index; {AGAIN}") from error
    if missing := sorted(set(columns) - set(there)):
        *most, last = columns
        raise DataError(
            f"received {path} without the columns {', '.join(missing)}; expected {', '.join(most)} and {last}; {AGAIN}"
        )
    if broken := [place for place, row in enumerate(rows, 1) if None in row or None in row.values()]:
        raise DataError(
            f"received {path} whose row {broken[0]} has not {len(there)} cells; expected one in each column; {AGAIN}"
        )
    return rows


def read_rows(path: Path, columns: Sequence[str] = COLUMNS) -> dict[str, dict[str, Any]]:
    """Rows by name, with these columns; none if there is no index yet.

    Args:
        columns: ``name`` among them.

    Raises:
        DataError: as `rows_of`.
    """
    if not path.is_file():
        return {}
    return {row["name"]: {column: row[column] for column in columns} for row in rows_of(path, columns)}


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """The index, whole or not at all."""
    with whole_file(path, overwrite=True) as staged, staged.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


@dataclass(frozen=True)
class Entry:
    """One row of the zoo's index."""

    name: str
    folder: Path
    data: str
    split: str


def read_index(zoo: Path, teachers: Sequence[str] = (), leave_out: str | None = None) -> list[Entry]:
    """The teachers of ``zoo.csv`` that meta-training may read: those of the splits ``train`` and ``validation``.

    Columns: name, data and split; each teacher is a folder beside the file.

    Args:
        teachers: names of those that take part; empty: all.
        leave_out: the one whose split becomes `LEFT_OUT`. With one left out there need be no teacher to validate on.

    Raises:
        DataError: no index, one without a column, an unknown split, or no teacher to train or to validate on; a name
            that is not in the zoo or that is held out. Indices from before there was the split ``validation`` are
            refused by this.
    """
    path = zoo / "zoo.csv"
    if not path.is_file():
        raise DataError(f"received {zoo} without zoo.csv; expected a zoo; run python -m lightning_modules.zoo first")
    rows = [
        Entry(row["name"], path.parent / row["name"], row["data"], row["split"])
        for row in rows_of(path, ("name", "data", "split"))
    ]
    if unknown := sorted({row.split for row in rows} - set(SPLITS)):
        raise DataError(
            f"received {path} with split {', '.join(unknown)}; expected {', '.join(SPLITS)}; mend the zoo's config and "
            "run python -m lightning_modules.zoo again"
        )
    rows = [row for row in rows if row.split != "heldout"]
    _require_names(path, rows, teachers, leave_out)
    rows = [row for row in rows if not teachers or row.name in (*teachers, leave_out)]
    rows = [replace(row, split=LEFT_OUT) if row.name == leave_out else row for row in rows]
    for split in ("train", "validation") if leave_out is None else ("train",):
        if not any(row.split == split for row in rows):
            raise DataError(
                f"received {path} without a teacher of split '{split}'{' among those named' if teachers else ''}; "
                "expected at least one; run python -m lightning_modules.zoo again with a config that has one (nothing "
                "that is there is trained anew)"
            )
    return rows


def _require_names(path: Path, rows: Sequence[Entry], teachers: Sequence[str], leave_out: str | None) -> None:
    """Raises DataError if a name is not one of those that meta-training may read."""
    asked = [*teachers, *([] if leave_out is None else [leave_out])]
    known = [row.name for row in rows]
    if unknown := sorted(set(asked) - set(known)):
        raise DataError(
            f"received teachers or leave_out with {', '.join(unknown)}; expected names of {path} that are not held "
            f"out ({', '.join(known)}); correct the names, or build a zoo where they are not held out"
        )
