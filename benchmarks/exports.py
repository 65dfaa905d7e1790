"""Students of 32 families of networks as ONNX in onnxruntime, as a program of torch.export, and under torch.compile.

    python -m benchmarks.exports [--families resnet18 ...] [--ways onnx torch.export torch.compile]
        [--backend inductor] [--out benchmarks/results]

For each family a timm model of random weights is compressed by ``svd`` to 0.7 of its parameters and taken each way for
any batch size. `difference` is the largest |output - the student's| over batches of 1 and 3, over the largest |output|
of the student where that is above 1: relative above 1, absolute below. ``hypercompress export`` and its 1e-4 are the
same. All three see a batch of 2 first, when they are traced. Under torch.compile, `graphs` counts what was compiled for
batches of 2, 1 and 3; without graph breaks 2 are one for every size and one for 1, which torch always takes for itself.
What works first is kept, of: one graph for any size, several graphs for any size, several for each size; `refused` has
the reasons against those before. A failure is a row with its error.

Writes ``exports.csv``, a row for a family and a way; rows that are there are not made again, failures included: delete
them to try once more. `seconds` include writing or compiling; torch's own cache of compiled code may shorten it. One
CPU core: a quarter of an hour for the files, one to four minutes a family for torch.compile (needs a C++ compiler).
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from benchmarks.shared.common import RESULTS, Results, say
from benchmarks.shared.families import FAMILIES, SHARE, student_of
from hypercompress.export import export
from hypercompress.export.checked import BATCH_SIZES, largest_difference, require_close
from hypercompress.export.program import reason
from hypercompress.report import bytes_of
from hypercompress.running.calling import evaluating
from hypercompress.student import Student

FILES = {"onnx": "onnx", "torch.export": "torch-export"}  # way -> format of the file
COMPILE = "torch.compile"
WAYS = (*FILES, COMPILE)
KEY, MADE_OF = ("model", "way"), ("params", "backend")
FORMS = ((True, True), (False, True), (False, False))  # fullgraph, dynamic; in the order in which they are tried
EMPTY = dict.fromkeys(
    ("difference", "bytes", "student_bytes", "seconds", "fullgraph", "dynamic", "graphs", "refused", "error")
)


def one_line(error: Exception) -> str:
    """Class and first line of what began it."""
    return f"{type(error).__name__}: {reason(error)}"


def as_file(student: Student, size: Sequence[int], way: str) -> dict[str, Any]:
    """What `hypercompress.export` says of the file that it writes, runs and compares."""
    with TemporaryDirectory() as folder:
        exported = export(student, Path(folder) / "student", FILES[way], input_size=size)
    return {"difference": exported.max_difference, "bytes": exported.bytes}


class Answers(nn.Module):
    """Outputs given before, by the number of inputs, to be compared as those of a file are."""

    def __init__(self, outputs: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        return self.outputs[len(x)]


def compiled(student: Student, size: Sequence[int], backend: str) -> dict[str, Any]:
    """The difference under torch.compile in the first of `FORMS` that works, and what had to be given up for it."""
    inputs = {n: torch.randn(n, *size, generator=torch.Generator().manual_seed(n)) for n in (2, *BATCH_SIZES)}
    refused: list[str] = []
    for fullgraph, dynamic in FORMS:
        torch.compiler.reset()
        before = counters["stats"]["unique_graphs"]
        found: dict[str, Any] = {"fullgraph": fullgraph, "dynamic": dynamic, "refused": "; ".join(refused)}
        try:
            with evaluating(student), torch.no_grad():
                expected = [student(inputs[n]) for n in BATCH_SIZES]
                running: Any = torch.compile(student, backend=backend, fullgraph=fullgraph, dynamic=dynamic)
                outputs = {n: running(batch) for n, batch in inputs.items()}
                difference = largest_difference(Answers(outputs), [inputs[n] for n in BATCH_SIZES], expected)
        except Exception as error:  # noqa: BLE001 - compilers raise anything
            refused.append(f"fullgraph={fullgraph}, dynamic={dynamic}: {one_line(error)}")
            continue
        return {**found, "difference": difference, "graphs": counters["stats"]["unique_graphs"] - before}
    return {"refused": "; ".join(refused[:-1]), "error": refused[-1]}


def tried(student: Student, size: Sequence[int], way: str, backend: str) -> dict[str, Any]:
    """What a way's row says, whatever comes of it."""
    start, found = time.perf_counter(), {**EMPTY, "student_bytes": bytes_of(student)}
    try:
        found |= compiled(student, size, backend) if way == COMPILE else as_file(student, size, way)
        if found["difference"] is not None:
            require_close(found["difference"])
    except Exception as error:  # noqa: BLE001 - a failure is a result
        found["error"] = one_line(error)
    return {**found, "seconds": time.perf_counter() - start}


def run(name: str, ways: Sequence[str], backend: str, results: Results) -> None:
    """The rows of a family that are missing."""
    rows = [{"model": name, "way": way, "params": SHARE, "backend": backend if way == COMPILE else ""} for way in ways]
    missing = [row for row in rows if not results.has(row)]
    if not missing:
        return
    try:
        student, size = student_of(name)
    except Exception as error:  # noqa: BLE001 - nor may a teacher stop the others
        for row in missing:
            results.add({**row, "input_size": "", **EMPTY, "error": f"no student: {one_line(error)}"})
        say(f"{name}: no student: {one_line(error)}")
        return
    for row in missing:
        found = tried(student, size, str(row["way"]), backend)
        results.add({**row, "input_size": "x".join(map(str, size)), **found})
        outcome = found["error"] or f"{found['difference']:.1e}"
        say(f"{name}, {row['way']}: {outcome} ({found['seconds']:.0f} s)")
    torch.compiler.reset()


def verdict(results: Results, way: str) -> str:
    """How many families went this way, and how far from the student."""
    rows = [row for row in results.rows if row["way"] == way]
    good = [row for row in rows if not row["error"]]
    if not good:
        return f"{way}: 0 of {len(rows)} families"
    largest = max(float(row["difference"]) for row in good)
    text = f"{way}: {len(good)} of {len(rows)} families, largest difference {largest:.1e}"
    if way in FILES:
        shares = [int(row["bytes"]) / int(row["student_bytes"]) for row in good]
        return f"{text}, {min(shares):.3f} to {max(shares):.3f} times the student's bytes"
    whole = sum(row["fullgraph"] == row["dynamic"] == "True" for row in good)
    return f"{text}, {whole} as one graph for any batch size"


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), metavar="NAME", help="timm names of the list")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="(default: all)")
    parser.add_argument("--backend", default="inductor", help="of torch.compile (default: inductor)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the file goes (default: benchmarks/results)")
    options = parser.parse_args(words)
    results = Results(options.out / "exports.csv", KEY, MADE_OF)
    for name in options.families:
        run(name, options.ways, options.backend, results)
    for way in options.ways:
        say(verdict(results, way))


if __name__ == "__main__":
    main()
