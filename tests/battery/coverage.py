"""docs/coverage.md: what the battery found, one row a module of timm.

    python -m tests.battery.coverage             write the file again (about 10 minutes on one core, 8 GB)
    python -m tests.battery.coverage beit swin_transformer   only these rows; the others stay as they are

A row is deterministic: the same code and the same timm give the same text. `tests/battery/test_modules.py` runs the
contract of every row at each commit and compares.
"""

import csv
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from re import sub

import timm
import torch

from hypercompress.inspection import inspect
from hypercompress.packed.unpacking import unpack
from hypercompress.specs import LayerSpec, ModelSpec, Status
from tests.battery.contract import CLASSES, RUNS, Run, Subject, accepted_size, check
from tests.battery.registry import HUGE, TIMM, Entry, read, smallest
from tests.battery.shrunk import SHRUNK

PAGE = Path(__file__).resolve().parents[2] / "docs" / "coverage.md"
ENTRIES = Path(__file__).with_name("entries.csv")  # written by `entries.py`
PASS = "pass"
TABLES = 1e-3  # of the cost: layers that run once a batch, on a table of positions, have no exact cost per sample
COLUMNS = (
    "module of timm",
    "its smallest model",
    "may be factored",
    "layers",
    "has a matrix, not factored",
    "contract",
)
HEAD = """# Coverage: timm, one row a module

Written by `python -m tests.battery.coverage` with timm {timm}; do not edit. {passed} of {total} modules keep the \
contract.

The contract (`tests/battery/contract.py`): inspect, measure curvature, generate a student with `kfac` and data at 70 %
of the parameters and one with a hypernetwork without data at 75 % of the multiply-accumulates (more where less cannot
be reached); each student costs what its plan says, is finite, learns wherever its teacher learns, comes back from disk
bit for bit, and leaves the teacher as it was.

* *may be factored*: share of the parameters, of the smallest model with {classes} classes.
* *layers*: modules that own parameters, factored / kept / unsupported / tied.
* *has a matrix, not factored*: share of the parameters and the reason, largest first; norms and vectors are left out.
* *contract*: `pass`, or what failed. Each commit runs it on the model with the arguments of `tests/battery/shrunk.py`,
  if there are any; above a million parameters one layer of each role is factored. The slow tests factor whole models,
  and run either generator, both with data, at the budget of the other.

{entries}

"""


@dataclass(frozen=True)
class Row:
    """One row of the table, as text."""

    module: str
    model: str
    share: str
    layers: str
    reasons: str
    result: str

    def __str__(self) -> str:
        cells = (self.module, f"`{self.model}`", self.share, self.layers, self.reasons, self.result)
        return f"| {' | '.join(cells)} |"


def verify(entry: Entry, folder: Path, *, shrunk: bool = True, runs: Iterable[Run] = RUNS) -> None:
    """Run the contract of a module's row; raises what is broken. Not ``shrunk``: on the model of its own size."""
    subject = Subject(entry.model, images=4, thin=True, args=SHRUNK.get(entry.model) if shrunk else None)
    for index, run in enumerate(runs):
        (folder / str(index)).mkdir()
        check(subject, run, folder / str(index), tolerance=0.0 if shrunk else TABLES)


def result(entry: Entry, *, shrunk: bool = True) -> str:
    """What the last column says."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            verify(entry, Path(folder), shrunk=shrunk)
    except Exception as error:  # noqa: BLE001 - whatever breaks is what the table is for
        first = str(error).partition("\n")[0].replace("|", "/")
        return f"{type(error).__name__}: {first[:160]}"
    return PASS


def describe(entry: Entry) -> tuple[str, str, str]:
    """The three columns that inspection gives, of the whole model."""
    torch.manual_seed(0)
    model = timm.create_model(entry.model, pretrained=False, num_classes=CLASSES).eval()
    images = torch.randn(2, *accepted_size(model), generator=torch.Generator().manual_seed(1))
    spec = inspect(unpack(model), images)  # as a generation reads it
    counts = [sum(layer.status is status for layer in spec.layers) for status in Status]
    share = sum(layer.dense_params for layer in spec.candidates) / spec.params
    return f"{share:.1%}", " / ".join(map(str, counts)), reasons(spec)


def reasons(spec: ModelSpec) -> str:
    """Why layers with a matrix stay dense, with their share of the parameters."""
    sizes: dict[str, int] = defaultdict(int)
    for layer in spec.layers:
        if layer.status is not Status.FACTORED and "no matrix" not in layer.reason:
            sizes[_plain(layer)] += layer.params
    ordered = sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    return "; ".join(f"{size / spec.params:.1%} {reason}" for reason, size in ordered)


def _plain(layer: LayerSpec) -> str:
    """The reason without the sizes and the paths of one layer."""
    if layer.status is Status.TIED:
        return "shares its weight" if "its weight" in layer.reason else "shares its bias"
    reason = sub(r"^\d+ x \d+( in each of \d+ groups)?: | \(groups=\d+\)", "", layer.reason)
    return sub(r"directly by \S+$", "directly", reason)


def committed() -> dict[str, Row]:
    """The rows of the file by module."""
    rows = {}
    for line in PAGE.read_text().splitlines() if PAGE.is_file() else ():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| ") and len(cells) == len(COLUMNS) and cells[1].startswith("`"):
            rows[cells[0]] = Row(cells[0], cells[1].strip("`"), *cells[2:])
    return rows


def entries(table: Path = ENTRIES) -> dict[str, str]:
    """What came of each entry point that was run, by its name: all that are not huge, and some that are."""
    if not table.is_file():
        return {}
    with table.open(newline="") as file:
        return {row["model"]: row["result"] for row in csv.DictReader(file)}


def of_entries(results: dict[str, str]) -> str:
    """The paragraph about them."""
    failed = [f"`{name}`: {found}" for name, found in results.items() if found != PASS]
    sizes = {entry.model: entry.params for entry in read()}
    moderate, huge = ([n for n in results if (sizes.get(n, 0) >= HUGE) is large] for large in (False, True))
    kept, kept_huge = (sum(results[name] == PASS for name in names) for names in (moderate, huge))
    larger = sum(size >= HUGE for size in sizes.values())
    text = (
        f"At their own sizes {kept} of the {len(moderate)} entry points of fewer than {HUGE // 10**6} million "
        "parameters keep it, one layer of each role factored\n"
        f"(`python -m tests.battery.entries`, `tests/battery/entries.csv`). {larger} entry points are larger: of these "
        f"{len(huge)} have been run, from the smallest up,\n"
        f"and {kept_huge} keep it; of the others only the smallest of their module."
    )
    return "\n* ".join([text, *failed])


def page(rows: dict[str, Row]) -> str:
    """The whole file."""
    ordered = [rows[module] for module in sorted(rows)]
    passed = sum(row.result == PASS for row in ordered)
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|", *map(str, ordered), ""]
    about = {
        "timm": TIMM,
        "passed": passed,
        "total": len(ordered),
        "classes": CLASSES,
        "entries": of_entries(entries()),
    }
    return HEAD.format(**about) + "\n".join(lines)


def main(modules: list[str]) -> None:
    torch.set_num_threads(1)
    rows = committed()
    for entry in smallest(read()):
        if not modules or entry.module in modules:
            rows[entry.module] = Row(entry.module, entry.model, *describe(entry), result(entry))
            PAGE.parent.mkdir(exist_ok=True)
            PAGE.write_text(page(rows))
            print(rows[entry.module], flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
