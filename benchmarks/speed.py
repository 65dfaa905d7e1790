"""Whether fewer multiply-accumulates are less time: six networks, beside students of half the size.

    python -m benchmarks.speed [--models resnet18 ...] [--forms any faster] [--batch-sizes 1 16] [--device cpu|cuda]
        [--out benchmarks/results]

Students by ``svd`` with half the parameters and with half the multiply-accumulates, of any forms and (``--fast``) of
forms that were faster than the dense layer only, at 224 x 224 pixels, one and 16 images at a time: eager torch in both
memory layouts, and onnxruntime on the CPU where it is installed; on an accelerator bfloat16 too, and there float32 is
float32: TF32 is off for products and for convolutions. Of the fast ones each factored layer is also timed alone beside
the dense one, in eager torch. Time depends on ranks and not on weights, so none are fetched; but the spectra of random
weights are flat, and ranks for them would be those of no real network. Each layer that may be factored therefore gets
random directions with singular values ``k^-a``; ``a`` is drawn for each layer between 0.19 and 0.33, where 80 % of the
layers of EfficientNet-Lite0 with its ImageNet weights lie (median 0.28).

Writes ``speed.csv``, or of another device ``speed_cuda.csv``; rows of the same machine and settings are not made again.
Two CPU cores, about 40 minutes.
"""

import argparse
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch
from torch import Tensor, nn

from benchmarks.shared.common import RESULTS, Results, markdown, named, processor, say
from hypercompress.benchmark import ModelSpeed, Settings, Speed, compare_layers, compare_models
from hypercompress.compress import finish
from hypercompress.errors import BudgetError, ExportError
from hypercompress.export import export
from hypercompress.export.onnx_file import PACKAGES, OnnxModel
from hypercompress.inspection import inspect
from hypercompress.preparation import Plan, prepare
from hypercompress.running.timing import interleaved, threads
from hypercompress.specs import Budget, ModelSpec
from hypercompress.student import Student

MODELS = (
    "resnet18",
    "resnet50",
    "mobilenetv2_100",
    "convnext_tiny",
    "deit_small_patch16_224",
    "vit_base_patch16_224",
)
BUDGETS = (Budget(params=0.5), Budget(macs=0.5))
BATCH_SIZES = (1, 16)
RUNTIMES = ("eager", "channels_last", "bfloat16", "onnxruntime")
DECAY = (0.19, 0.33)  # least and largest exponent of a layer's singular values
SEED = 0
FORMS = ("any", "faster")
NOT_ALONE = {"layers": None, "slower_layers": None}
KEY = ("model", "unit", "share", "forms", "batch_size", "runtime", "machine", "threads")


@dataclass
class Pair:
    """A network and its student.

    Args:
        teacher, student: on one device.
    """

    teacher: nn.Module
    student: Student

    @cached_property
    def sessions(self) -> tuple[OnnxModel, OnnxModel]:
        """Both in onnxruntime, with as many threads as torch has now.

        Raises:
            ExportError: an operation that ONNX lacks.
        """
        with TemporaryDirectory() as folder:
            files = [Path(folder) / f"{name}.onnx" for name in ("teacher", "student")]
            for model, file in zip((self.teacher, self.student), files, strict=True):
                export(model, file)
            return OnnxModel(files[0]), OnnxModel(files[1])

    @cached_property
    def halved(self) -> tuple[nn.Module, Student]:
        """Copies of both in bfloat16."""
        student: Student = copy.deepcopy(self.student).bfloat16()
        return copy.deepcopy(self.teacher).bfloat16(), student

    def speed(self, batch_size: int, runtime: str, settings: Settings) -> ModelSpeed:
        """Both on one batch."""
        batch = noise(self.teacher, batch_size)
        if runtime == "bfloat16":
            teacher, student = self.halved
            return compare_models(teacher, student, batch.bfloat16(), settings)
        if runtime != "onnxruntime":
            return compare_models(self.teacher, self.student, batch, settings)
        with threads(settings.threads) as count:
            first, second = self.sessions
            before, after = interleaved([lambda: first(batch), lambda: second(batch)], settings.seconds)
        report = self.student.report
        speed = Speed(before, after, report["teacher"]["macs"] / report["student"]["macs"])
        return ModelSpeed(batch_size, count, "cpu", "float32", channels_last=False, speed=speed)

    def alone(self, batch_size: int, settings: Settings) -> dict[str, int]:
        """How many layers are factored, and how many of them are slower than the dense layer when timed alone."""
        rows = compare_layers(self.student, noise(self.teacher, batch_size), settings)
        return {"layers": len(rows), "slower_layers": sum(row.slower for row in rows)}


@dataclass(frozen=True)
class Bench:
    """Where and how long.

    Args:
        device: of torch.
        threads: on the CPU.
        seconds: measured time of each model in each row.
    """

    device: torch.device
    threads: int
    seconds: float

    @property
    def machine(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else processor()

    @property
    def runtimes(self) -> tuple[str, ...]:
        """What there is here."""
        cpu = self.device.type == "cpu"
        only = {"bfloat16": not cpu, "onnxruntime": cpu and all(find_spec(name) for name in PACKAGES)}
        return tuple(runtime for runtime in RUNTIMES if only.get(runtime, True))

    def run(self, results: Results, models: Sequence[str], menus: Sequence[str], batch_sizes: Sequence[int]) -> None:
        """All rows that are missing."""
        for model, forms in product(models, menus):
            plans: dict[int | None, Plan] = {}
            for budget, batch_size in product(BUDGETS, batch_sizes):
                timed, pair = (batch_size if forms == "faster" else None), None
                for row in self.missing(results, model, budget, forms, batch_size):
                    if timed not in plans:
                        plans[timed] = planned(model, self.device, timed)
                    try:
                        pair = pair or Pair(plans[timed].original, finish(plans[timed], budget))
                        settings = Settings(self.seconds, self.threads, row["runtime"] == "channels_last")
                        found = pair.speed(row["batch_size"], row["runtime"], settings)
                    except (BudgetError, ExportError) as error:
                        say(f"{model}, {budget.unit} {budget.share:g}, {forms} forms, {row['runtime']}: {error}")
                        continue
                    alone = pair.alone(batch_size, settings) if timed and row["runtime"] == "eager" else {}
                    results.add({**row, **numbers(found), **NOT_ALONE, **alone})
                    say(f"{model}, {budget.unit} {budget.share:g}, {forms} forms, {row['runtime']}: {sentence(found)}")

    def missing(
        self, results: Results, model: str, budget: Budget, forms: str, batch_size: int
    ) -> Iterator[dict[str, Any]]:
        """The rows to make, without their numbers."""
        about = {"model": model, "unit": str(budget.unit), "share": budget.share, "forms": forms}
        made = {"machine": self.machine, "threads": self.threads, "seconds": self.seconds}
        for runtime in self.runtimes:
            row = {**about, "batch_size": batch_size, "runtime": runtime, **made}
            if not results.has(row):
                yield row


def planned(name: str, device: torch.device, timed: int | None = None) -> Plan:
    """The network with spectra as in the docstring of this program, and what ``svd`` reads of it.

    Args:
        timed: samples of the batch that its layers are timed with; ``None``: they are not.
    """
    torch.manual_seed(SEED)
    teacher = timm.create_model(name, pretrained=False).eval()
    decaying(teacher, inspect(teacher, noise(teacher, 2)))
    return prepare(teacher.to(device), None, "svd", latency_batch=timed)


@torch.no_grad()
def decaying(model: nn.Module, spec: ModelSpec) -> None:
    """Give each candidate random directions with singular values ``k^-a``, and rows of norm one on average, so that
    activations neither vanish nor explode.
    """
    for layer in spec.candidates:
        weight = model.get_parameter(f"{layer.name}.weight")
        exponent = torch.empty(()).uniform_(*DECAY)
        values = torch.arange(1.0, layer.full_rank + 1) ** -exponent
        left, right = (torch.linalg.qr(torch.randn(side, layer.full_rank))[0] for side in (layer.out, layer.d))
        matrix = (left * values) @ right.T
        weight.copy_((matrix * layer.out**0.5 / values.norm()).reshape(weight.shape))


def noise(model: nn.Module, batch_size: int) -> Tensor:
    """A batch of the size that the model was made for."""
    size: tuple[int, ...] = model.pretrained_cfg["input_size"]  # type: ignore[assignment,index]
    return torch.randn(batch_size, *size).to(next(model.parameters()).device)


def numbers(found: ModelSpeed) -> dict[str, float]:
    """The columns of a row."""
    speed = found.speed
    columns: dict[str, float] = {}
    for side, timing in (("teacher", speed.dense), ("student", speed.student)):
        low, high = timing.quartiles
        columns |= {f"{side}_ms": timing.ms, f"{side}_ms_low": low, f"{side}_ms_high": high}
    return {**columns, "speedup": speed.speedup, "macs_ratio": speed.macs_ratio, "efficiency": speed.efficiency}


def sentence(found: ModelSpeed) -> str:
    """A row while it is made."""
    speed = found.speed
    times = f"{speed.dense.ms:.2f} -> {speed.student.ms:.2f} ms, {speed.speedup:.2f} times as fast"
    return f"batch {found.batch_size}, {times}, efficiency {speed.efficiency:.2f}"


def table(results: Results, machine: str, count: int) -> str:
    """The rows of one machine and number of threads, for a README, whenever they were made."""
    header = ("model", "half the", "forms", "batch", "runtime", "dense ms", "student ms", "speedup", "MACs ratio")
    names = ("teacher_ms", "student_ms", "speedup", "macs_ratio", "efficiency")
    rows = [row for row in results.rows if (row["machine"], row["threads"]) == (machine, str(count))]
    about = ("model", "unit", "forms", "batch_size", "runtime")
    order = list(dict.fromkeys(row["model"] for row in rows))
    rows.sort(
        key=lambda row: (
            order.index(row["model"]),
            row["unit"],
            row["forms"],
            int(row["batch_size"]),
            RUNTIMES.index(row["runtime"]),
        )
    )
    lines = ([*(row[k] for k in about), *(f"{float(row[k]):.2f}" for k in names)] for row in rows)
    return f"{markdown((*header, 'efficiency'), lines)}\n\n{verdict(rows)}"


def verdict(rows: Sequence[dict[str, str]]) -> str:
    """What the fast students are held to: whole ones no slower than their teachers, and hardly a layer."""
    fast = [row for row in rows if row["forms"] == "faster"]
    slow = [row for row in fast if float(row["speedup"]) < 1]
    layers, slower = (sum(int(row[name]) for row in fast if row["layers"]) for name in ("layers", "slower_layers"))
    return (
        f"of forms found faster: {len(slow)} of {len(fast)} whole students slower than the teacher, {slower} of "
        f"{layers} factored layers slower than dense"
    )


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME", help="timm names (default: all six)")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS, help="default: both")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=BATCH_SIZES, metavar="N", help="default: 1 16")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--threads", type=int, help="on the CPU (default: as torch chooses)")
    parser.add_argument("--seconds", type=float, default=0.5, help="for each model in each row (default: 0.5)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the file goes (default: benchmarks/results)")
    options = parser.parse_args(words)
    count = torch.get_num_threads() if options.threads is None else options.threads
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    bench = Bench(torch.device(options.device), count, options.seconds)
    if "onnxruntime" not in bench.runtimes:
        say("without onnxruntime: it is not installed here, or the device is not the CPU")
    results = Results(options.out / named("speed", options.device), KEY, ("seconds",))
    bench.run(results, options.models, options.forms, options.batch_sizes)
    say(f"\n{bench.machine}, {count} threads\n\n{table(results, bench.machine, count)}")


if __name__ == "__main__":
    main()
