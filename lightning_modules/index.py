"""``zoo.csv``, the index of a zoo: a row for each of its teachers, which is a folder beside it."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hypercompress.errors import DataError
from hypercompress.saved.whole_file import whole_file

COLUMNS = ("name", "family", "data", "split", "params", "macs", "top1")
AGAIN = (
    "remove it and run python -m lightning_modules.zoo again with its config (nothing that is there is trained anew)"
)


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
