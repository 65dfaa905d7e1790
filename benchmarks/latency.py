"""Whether ``--latency`` meets its target on this machine.

    python -m benchmarks.latency [--models resnet18 ...] [--shares 0.8 0.6] [--batch-size 1] [--out benchmarks/results]

Students of networks as they are initialised, generated without data by ``svd``: only their speed matters. Each is timed
beside its teacher once more after it was made, and a second time by a clock that is not ours: `torch.utils.benchmark`,
one after the other (``achieved_torch``). Writes ``latency.csv``. Two CPU cores, a few minutes.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.utils.benchmark import Timer

from benchmarks.shared.common import RESULTS, Results, say
from hypercompress import Budget, compress
from hypercompress.errors import BudgetError
from hypercompress.latency import times_of

MODELS = ("resnet18", "resnet50", "mobilenetv2_100", "deit_small_patch16_224")
SHARES = (0.8, 0.6)


def independent(model: nn.Module, example: Tensor, seconds: float) -> float:
    """Median milliseconds of a forward pass by torch's own timer."""
    with torch.inference_mode():
        timer = Timer("model(x)", globals={"model": model.eval(), "x": example}, num_threads=torch.get_num_threads())
        return 1e3 * float(timer.blocked_autorange(min_run_time=seconds).median)


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME", help="timm names")
    parser.add_argument("--shares", nargs="+", type=float, default=list(SHARES), help="targets (default: 0.8 0.6)")
    parser.add_argument("--batch-size", type=int, default=1, help="images that are run together (default: 1)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the file goes (default: benchmarks/results)")
    options = parser.parse_args(words)
    results = Results(options.out / "latency.csv", ("model", "share", "batch_size"), ())
    for name in options.models:
        torch.manual_seed(0)
        teacher: Any = timm.create_model(name, pretrained=False).eval()
        example = torch.randn(options.batch_size, *teacher.pretrained_cfg["input_size"])
        for share in options.shares:
            row = {"model": name, "share": share, "batch_size": options.batch_size}
            try:
                student = compress(teacher, Budget(latency=share), generator="svd", latency_batch=options.batch_size)
            except BudgetError as error:
                missing = dict.fromkeys(("achieved", "achieved_torch", "teacher_ms", "student_ms", "params"))
                results.add({**row, **missing, "layers": 0})
                say(f"{name}, {share:g}: {error}")
                continue
            dense, ours = times_of(teacher, student, example, seconds=2.0)
            report = student.report
            params = report["student"]["params"] / report["teacher"]["params"]
            second, first = (independent(model, example, seconds=2.0) for model in (student, teacher))
            times = {
                "achieved": ours / dense,
                "achieved_torch": second / first,
                "teacher_ms": dense,
                "student_ms": ours,
            }
            results.add({**row, **times, "layers": len(student.ranks), "params": params})
            say(f"{name}, {share:g}: {dense:.2f} -> {ours:.2f} ms, {ours / dense:.3f} ({second / first:.3f} by torch)")


if __name__ == "__main__":
    main()
