"""What the benchmark programs share: images as tensors, result tables that survive an interruption, and their stamp.

Shape letters: ``n`` images; ``c h w`` channels, height and width of one image; ``k`` classes.
"""

import csv
import datetime
import hashlib
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from hypercompress.data import Preprocess, loader, open_data
from hypercompress.fidelity import Fidelity, compare
from hypercompress.inspection import inspect
from hypercompress.running.calling import call_model, evaluating
from hypercompress.specs import Budget, ModelSpec

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
BATCH = 500  # images in a batch of evaluation
COMMIT = "HYPERCOMPRESS_COMMIT"  # names the commit of a copy that is no repository


@dataclass(frozen=True)
class Set:
    """Images in memory, with the teacher's answers once they are known.

    Args:
        images, labels: the prepared set.
        logits: the teacher's logits.
    """

    images: Float[Tensor, "n c h w"]
    labels: Int64[Tensor, " n"]
    logits: Float[Tensor, "n k"]

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, chosen: Int64[Tensor, " m"] | slice) -> "Set":
        """The images at these places."""
        return Set(self.images[chosen], self.labels[chosen], self.logits[chosen])

    def shuffled(self) -> "Set":
        """All of them in a random order, the same on each call."""
        return self.subset(torch.randperm(len(self), generator=torch.Generator().manual_seed(0)))

    def to(self, device: torch.device) -> "Set":
        """The same on a device."""
        return Set(self.images.to(device), self.labels.to(device), self.logits.to(device))

    def batches(self, size: int = BATCH) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Images, labels and teacher's logits, in order."""
        return zip(self.images.split(size), self.labels.split(size), self.logits.split(size), strict=True)


def read_set(teacher: nn.Module, text: str, *, train: bool, limit: int | None = None, shuffled: bool = False) -> Set:
    """A data set as the teacher wants it, on the teacher's device, with its logits.

    Args:
        text: as DATA on the command line.
        train: the training images, else the held-out ones.
        limit: a random subset of so many images in random order, the same on each call; all in the order of the data
            set if there are no more, which of folders is class after class.
        shuffled: these too in random order, as statistics want them: of every eight batches two are held out.
    """
    data = open_data(text, Preprocess.of(teacher), train=train)
    parts = list(loader(data, batch_size=BATCH, limit=limit))
    device = next(teacher.parameters()).device
    found = answered(teacher, *(torch.cat([part[i] for part in parts]).to(device) for i in (0, 1)))
    return found.shuffled() if shuffled and (limit is None or limit >= len(data)) else found


def answered(teacher: nn.Module, images: Float[Tensor, "n c h w"], labels: Int64[Tensor, " n"] | None = None) -> Set:
    """The images with the teacher's logits; ``None``: without labels, which are -1 then."""
    with evaluating(teacher), torch.no_grad():
        logits = torch.cat([call_model(teacher, batch) for batch in images.split(BATCH)])
    return Set(images, torch.full((len(images),), -1) if labels is None else labels, logits)


def fidelity(teacher: nn.Module, student: nn.Module, test: Set) -> Fidelity:
    """`hypercompress.fidelity.compare`, with the teacher's logits read instead of computed again."""

    def known(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return batch[2] if model is teacher else call_model(model, batch)

    return compare(teacher, student, test.batches(), known)


def budget_of(spec: ModelSpec, share: float) -> Budget:
    """The budget of the whole teacher that leaves ``share`` of the parameters of the layers that may be factored."""
    dense = sum(layer.dense_params for layer in spec.candidates)
    return Budget(params=(spec.params - dense + share * dense) / spec.params)


def size_of(model: nn.Module, example: Float[Tensor, "n c h w"]) -> tuple[int, int]:
    """Parameters, and multiply-accumulates of one image."""
    spec = inspect(model, example)
    return spec.params, spec.macs


def digest(path: Path) -> str:
    """Eight letters that name the weights in a file, or in the files of a folder."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


def stamp() -> dict[str, str]:
    """Date, commit (``+``: with changes that are not committed), hardware and versions: the last columns of a row."""
    commit = _git("rev-parse", "--short", "HEAD") or os.environ.get(COMMIT, "none")
    changed = "+" if _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results") else ""
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit + changed,
        "hardware": f"{processor()}, {torch.get_num_threads()} threads{_card()}",
        "versions": f"python {platform.python_version()}, torch {torch.__version__}",
    }


def named(table: str, device: str) -> str:
    """File of a table: what was measured on an accelerator has one of its own."""
    kind = torch.device(device).type
    return f"{table}.csv" if kind == "cpu" else f"{table}_{kind}.csv"


def _card() -> str:
    """Name of the card, if the program uses one."""
    return f", {torch.cuda.get_device_name()}" if torch.cuda.is_initialized() else ""


def processor() -> str:
    """Name of the processor; Python knows it on some systems only."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text(encoding="utf-8").splitlines() if table.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git(*words: str) -> str:
    command = ["git", *words]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


class Results:
    """A CSV that is written row by row, so that an interrupted program goes on where it was.

    A row is found again by its key and by what it was made of; a row of the same key made of something else is
    replaced, but not by one that is made of less of the same.

    Args:
        path: the file; made with its folder.
        key: columns that name a row.
        made_of: columns that name what went into a row: weights, settings.
        counted: the one of ``made_of`` of which more serves as well: a number of episodes.
    """

    def __init__(
        self, path: Path, key: Sequence[str], made_of: Sequence[str] = ("weights",), counted: str | None = None
    ) -> None:
        self.path, self.key, self.made_of, self.counted = path, tuple(key), tuple(made_of), counted
        self.rows = _rows(path) if path.is_file() else []

    def has(self, row: Mapping[str, Any]) -> bool:
        """Whether this key is there, made of the same, or of more of what is counted."""
        wanted = {name: cell(row[name]) for name in (*self.key, *self.made_of)}
        return any(self._alike(old, wanted) and self._count(old) >= self._count(wanted) for old in self.rows)

    def add(self, row: Mapping[str, Any]) -> None:
        """Put the row, with a stamp, and write the file whole: a kill leaves the old one."""
        self._put({name: cell(value) for name, value in {**row, **stamp()}.items()})
        self._write()

    def absorb(self, path: Path) -> None:
        """Put the rows of another file of this kind, with the stamps that they have."""
        for row in _rows(path):
            self._put(row)
        self._write()

    def _alike(self, one: Mapping[str, str], other: Mapping[str, str]) -> bool:
        """Whether two rows have the same key and are made of the same, however much of it."""
        names = (name for name in (*self.key, *self.made_of) if name != self.counted)
        return all(one.get(name) == other.get(name) for name in names)

    def _count(self, row: Mapping[str, str]) -> int:
        return int(row.get(self.counted) or 0) if self.counted else 0

    def _put(self, new: dict[str, str]) -> None:
        if any(self._alike(old, new) and self._count(old) > self._count(new) for old in self.rows):
            return
        self.rows = [old for old in self.rows if any(old[name] != new[name] for name in self.key)]
        self.rows.append(new)

    def _write(self) -> None:
        if not self.rows:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".csv.new")
        with draft.open("w", encoding="utf-8", newline="") as file:
            columns = dict.fromkeys(name for row in self.rows for name in row)  # old rows may have others than new ones
            writer = csv.DictWriter(file, list(columns), restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
        draft.replace(self.path)

    def numbers(self, column: str, **chosen: Any) -> list[float]:
        """The numbers of a column in the rows with these values."""
        rows = [row for row in self.rows if all(row[name] == cell(value) for name, value in chosen.items())]
        return [float(row[column]) for row in rows if row[column]]


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def cell(value: Any) -> str:
    """How a value stands in a CSV: floats with six digits."""
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def spread(values: Sequence[float], digits: int = 2, scale: float = 1.0) -> str:
    """Mean, and standard deviation over seeds where there are several; a dash for none."""
    scaled = [value * scale for value in values]
    if not scaled:
        return "-"
    deviation = f" ± {statistics.stdev(scaled):.{digits}f}" if len(scaled) > 1 else ""
    return f"{statistics.fmean(scaled):.{digits}f}{deviation}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table for a README."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def say(text: str) -> None:
    """One line of progress, at once."""
    print(text, flush=True)
