"""The main job on packaged data: a trained network, three generated students, one of them distilled, all measured.

    python -m benchmarks.quickstart [--params SHARE] [--out runs/quickstart]        (or: make quickstart)

Uses only what is in the package: 4,096 training and 2,048 test images of Fashion-MNIST, a small ResNet-18 trained on
Fashion-MNIST, and the released hypernetwork. Writes ``student/`` (the distilled student), ``report.json``,
``comparison.csv`` and ``pareto.png`` into the folder, and what Lightning logs beside them. Two CPU cores, about two
minutes; the networks are small, so that the time of a call is mostly overhead and hardly falls with the size.
"""

import argparse
import csv
import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from benchmarks.shared.common import ROOT, Set, fidelity, read_set, size_of, stamp
from benchmarks.shared.figures import quickstart_figure
from hypercompress.allocation import pareto
from hypercompress.architecture import Architecture
from hypercompress.compress import finish
from hypercompress.fidelity import Fidelity
from hypercompress.generator import ANALYTIC, Generator, load_generator
from hypercompress.models import load_model
from hypercompress.preparation import Plan, prepare
from hypercompress.report import fidelity_json
from hypercompress.specs import Budget, Unit
from hypercompress.student import Student, from_pretrained

DATA = "fashion_mnist_mini"
TEACHER = ROOT / "hypercompress" / "pretrained" / "fashion_mnist_teacher"
CONFIG = ROOT / "configs" / "quickstart.yaml"
GENERATORS = ("svd", "kfac", "hypernet")
BATCH = 32  # images in a batch of the timing


@dataclass(frozen=True)
class Settings:
    """What can be changed.

    Args:
        out: folder of the run.
        params: budget, as a share of the teacher's parameters.
        images: training images for the statistics.
        test_images: random subset of the test images to measure on; ``None``: all.
        hypernet: ``hypernet`` for the released hypernetwork, or the folder of another.
        words: further words for LightningCLI.
        timing: seconds for the timing of each network.
        shares: further budgets, for the plot.
    """

    out: Path = ROOT / "runs" / "quickstart"
    params: float = 0.03
    images: int = 1024
    test_images: int | None = None
    hypernet: str = "hypernet"
    words: tuple[str, ...] = ()
    timing: float = 0.5
    shares: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2)

    def generator(self, name: str) -> Generator:
        """A generator by its name in the table."""
        return load_generator(self.hypernet if name == "hypernet" else name)


@dataclass(frozen=True)
class Row:
    """One network of the comparison.

    Args:
        name: as in the table.
        params, macs: parameters, and multiply-accumulates of one image.
        ms: milliseconds of a batch of 32.
        measured: against the teacher on the test images.
    """

    name: str
    params: int
    macs: int
    ms: float
    measured: Fidelity

    @property
    def columns(self) -> dict[str, Any]:
        """As in ``comparison.csv``."""
        sizes = {"model": self.name, "params": self.params, "macs": self.macs, f"ms_batch_{BATCH}": self.ms}
        return {
            **sizes,
            "top1": self.measured.top1_student,
            "agreement": self.measured.agreement,
            "kl": self.measured.kl,
        }


def milliseconds(model: nn.Module, images: Tensor, seconds: float) -> float:
    """Median time of one call, on all threads torch uses."""
    timer = Timer("model(images)", globals={"model": model, "images": images}, num_threads=torch.get_num_threads())
    with torch.inference_mode():
        return 1e3 * float(timer.blocked_autorange(min_run_time=seconds).median)


def generate(
    teacher: nn.Module, architecture: Architecture | None, settings: Settings, console: Console
) -> tuple[Plan, dict[str, Student]]:
    """The students by generator, all from one set of statistics."""
    images = read_set(teacher, DATA, train=True, limit=settings.images).images.split(64)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("measuring curvature", total=settings.images)

        def advance(phase: str, done: int, _at: str = "", /) -> None:
            bar.update(task, description=phase, completed=done)

        plan = prepare(teacher, images, "kfac", progress=advance)
    students = {}
    for name in GENERATORS:
        start = time.perf_counter()
        chosen = replace(plan, generator=settings.generator(name))
        students[name] = finish(chosen, Budget(params=settings.params), architecture=architecture)
        console.print(f"    {name}: {time.perf_counter() - start:.1f} s")
    return plan, students


def distil(start: Student, settings: Settings, console: Console) -> Student:
    """Distil through Lightning, as ``python train.py fit --config configs/quickstart.yaml`` does."""
    begin, end = (settings.out.resolve() / name for name in ("generated", "student"))
    start.save_pretrained(begin, overwrite=True)
    words = ["fit", "--config", str(CONFIG.relative_to(ROOT)), f"--model.student={begin}"]
    words += [
        f"--trainer.{name}={settings.out.resolve()}" for name in ("default_root_dir", "logger.init_args.save_dir")
    ]
    words += [f"--trainer.callbacks.init_args.folder={end}", f"--model.teacher.model={TEACHER}", *settings.words]
    console.print(f"    python train.py {shlex.join(words[:3])} ...")
    subprocess.run([sys.executable, "train.py", *words], cwd=ROOT, check=True)
    return from_pretrained(end)


def measure(name: str, teacher: nn.Module, model: nn.Module, test: Set, seconds: float) -> Row:
    """One row of the table."""
    params, macs = size_of(model, test.images[:2])
    return Row(name, params, macs, milliseconds(model, test.images[:BATCH], seconds), fidelity(teacher, model, test))


def sweep(plan: Plan, settings: Settings, test: Set, console: Console) -> dict[str, list[tuple[float, Fidelity]]]:
    """Further students of every generator, measured: by generator, (share of the parameters, fidelity)."""
    found: dict[str, list[tuple[float, Fidelity]]] = {name: [] for name in GENERATORS}
    with Progress(console=console, transient=True) as bar:
        for name, share in bar.track(list(product(GENERATORS, settings.shares)), description="other sizes"):
            chosen = replace(plan, generator=settings.generator(name))
            student = finish(chosen, Budget(params=share))
            found[name].append((student.report["budget"]["achieved"], fidelity(plan.teacher, student, test)))
    return found


def table(rows: Iterable[Row]) -> Table:
    """What is printed at the end."""
    caption = f"ms: a batch of {BATCH} images; agreement, KL: with the teacher"
    shown = Table("model", "params", "MACs", "ms", "top-1", "agreement", "KL", caption=caption)
    for column in shown.columns[1:]:
        column.justify = "right"
    for row in rows:
        quality = (f"{100 * (row.measured.top1_student or 0):.1f} %", f"{100 * (row.measured.agreement or 0):.1f} %")
        cost = (f"{row.params:,}", f"{row.macs:,}", f"{row.ms:.1f}")
        shown.add_row(row.name, *cost, *quality, f"{row.measured.kl:.3f}")
    return shown


def draw(plan: Plan, rows: Sequence[Row], others: Mapping[str, list[tuple[float, Fidelity]]], path: Path) -> None:
    """The figure: all students, and what was predicted for every budget at once."""
    generator = ANALYTIC["kfac"]
    known = generator.directions(plan.spec, plan.sketches)
    points = pareto(plan.spec, generator.energies(known.outputs), Unit.PARAMS, generator.energies(known.inputs))
    measured = {
        row.name: [(row.params / plan.spec.params, row.measured), *others.get(row.name, [])] for row in rows[1:]
    }
    quickstart_figure(measured, points, rows[0].measured, path)


def write(out: Path, report: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """``report.json``: the distilled student's report with its fidelity on the test images; and ``comparison.csv``."""
    found = {**report, "fidelity": fidelity_json(rows[-1].measured), "comparison": [row.columns for row in rows]}
    (out / "report.json").write_text(json.dumps({**found, "made": stamp()}, indent=2) + "\n", encoding="utf-8")
    with (out / "comparison.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0].columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(row.columns for row in rows)


def quickstart(settings: Settings, console: Console) -> list[Row]:
    """All steps. Rows: the teacher, the generated students, the distilled one."""
    start = time.perf_counter()
    settings.out.mkdir(parents=True, exist_ok=True)
    console.rule("1/4  the packaged teacher and images")
    teacher, architecture = load_model(str(TEACHER))
    test = read_set(teacher, DATA, train=False, limit=settings.test_images)
    console.print(f"    resnet18, narrow, trained on Fashion-MNIST; {len(test):,} test images")
    console.rule(f"2/4  generating students of {settings.params:.1%} of the parameters: {', '.join(GENERATORS)}")
    plan, students = generate(teacher, architecture, settings, console)
    console.rule(f"3/4  distilling the {GENERATORS[-1]} student through Lightning")
    last = distil(students[GENERATORS[-1]], settings, console)
    console.rule("4/4  measuring all of them on the test images")
    models = {"teacher": teacher, **{name: student.model for name, student in students.items()}}
    models["distilled"] = last.model
    rows = [measure(name, teacher, model, test, settings.timing) for name, model in models.items()]
    write(settings.out, last.report, rows)
    draw(plan, rows, sweep(plan, settings, test, console), settings.out / "pareto.png")
    console.print(table(rows))
    console.print(f"{time.perf_counter() - start:.0f} s. Written to {settings.out}:")
    console.print("student/ (the distilled student), report.json, comparison.csv, pareto.png")
    return rows


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Settings.out, help="folder of the run (default: runs/quickstart)")
    parser.add_argument("--params", type=float, default=Settings.params, help="budget, a share of the parameters")
    parser.add_argument("--hypernet", default="hypernet", help="folder of a hypernetwork (default: the released one)")
    options = parser.parse_args(words)
    torch.manual_seed(0)
    quickstart(Settings(out=options.out, params=options.params, hypernet=options.hypernet), Console(highlight=False))


if __name__ == "__main__":
    main()
