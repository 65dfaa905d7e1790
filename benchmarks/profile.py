"""Where the time of a forward pass goes, by kind of operation: networks beside students of half the MACs, on the CPU.

    python -m benchmarks.profile [--models resnet18 ...] [--batch-sizes 1 16] [--threads N] [--seconds 10]
        [--out benchmarks/results]

Networks and students are those of `benchmarks/speed.py` (weights drawn with decaying spectra, ``svd``, any forms), in
eager torch. `torch.profiler` gives the time spent inside each operation, calls to other operations aside; what is
between operations (Python, and the profiler) is a kind of its own, so that the kinds add up to the pass. Dense and
student take turns, and each kind's milliseconds are the median over passes: `ms` is their sum. Layouts that oneDNN
changes inside a convolution count as the convolution, products inside fused attention as attention.

`products_gflop` are the operations of convolutions and products of one batch, attention aside (two for each
multiply-accumulate), and `products_gflop_per_second` what was reached in their time.

Writes ``profile.csv``. One thread, about five minutes. On a busy machine several threads wait for each other in every
operation, and neither times nor shares mean much: ask for one.
"""

import argparse
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from benchmarks.shared.common import RESULTS, Results, markdown, processor, say
from benchmarks.speed import Pair, noise, planned
from hypercompress.compress import finish
from hypercompress.running.calling import evaluating
from hypercompress.running.counting import counting
from hypercompress.running.timing import threads
from hypercompress.specs import Budget

MODELS = ("deit_small_patch16_224", "vit_base_patch16_224", "resnet18", "resnet50")
BATCH_SIZES = (1, 16)
BUDGET = Budget(macs=0.5)
LEAST = 5  # passes
KEY = ("model", "batch_size", "threads", "machine", "which")
PASS = "forward pass"  # as the profiler names it
ATTENTION = "scaled_dot_product"  # in the names of all of torch's fused kernels
KINDS = {
    "products": "linear addmm mm bmm baddbmm matmul mv addmv conv2d _convolution convolution mkldnn_convolution "
    "_slow_conv2d_forward thnn_conv2d mkldnn_linear",
    "attention": "_softmax softmax",
    "norms": "batch_norm _batch_norm_impl_index native_batch_norm layer_norm native_layer_norm native_group_norm",
    "activations": "relu clamp_min gelu silu hardtanh hardswish hardsigmoid sigmoid tanh",
    "copies": "copy clone contiguous to _to_copy cat empty empty_like empty_strided resize view _unsafe_view reshape "
    "flatten permute transpose t as_strided expand select unbind narrow slice split chunk squeeze unsqueeze "
    "_reshape_alias resolve_conj resolve_neg pad constant_pad_nd",
    "sums": "add sub mul",  # of branches, and their scales
    "pooling": "max_pool2d max_pool2d_with_indices avg_pool2d adaptive_avg_pool2d mean sum",
    "between": PASS,
    "other": "",
}
KIND_OF = {name: kind for kind, names in KINDS.items() if kind != "between" for name in names.split()}


def kind_of(operation: str) -> str:
    """One of `KINDS`; an operation in place is of the kind of the one that is not."""
    name = operation.removeprefix("aten::").rstrip("_")
    if name == PASS:
        return "between"
    return "attention" if ATTENTION in name else KIND_OF.get(name, "other")


def once(model: nn.Module, batch: Tensor) -> dict[str, float]:
    """Milliseconds of one pass by kind."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled, record_function(PASS):
        model(batch)
    found = dict.fromkeys(KINDS, 0.0)
    for event in profiled.key_averages():
        found[kind_of(event.key)] += event.self_cpu_time_total / 1e3
    return found


def medians(passes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of each kind."""
    return {kind: statistics.median(found[kind] for found in passes) for kind in KINDS}


def in_turns(models: Sequence[nn.Module], batch: Tensor, seconds: float) -> list[dict[str, float]]:
    """Milliseconds of each model by kind; the models take turns for so many seconds, and five passes at least."""
    found: list[list[dict[str, float]]] = [[] for _ in models]
    with torch.inference_mode():
        for model in models:
            model(batch)
        start = time.perf_counter()
        while len(found[0]) < LEAST or time.perf_counter() - start < seconds:
            for model, passes in zip(models, found, strict=True):
                passes.append(once(model, batch))
    return [medians(passes) for passes in found]


def gflop(model: nn.Module, batch: Tensor) -> float:
    """Billions of operations of convolutions and products, attention aside, for one batch."""
    with torch.no_grad(), counting() as counter:
        model(batch[:1])
    counts = counter.get_flop_counts()["Global"]
    return len(batch) * sum(count for name, count in counts.items() if ATTENTION not in str(name)) / 1e9


def rows(pair: Pair, batch_size: int, seconds: float) -> list[dict[str, Any]]:
    """Of the network and of its student."""
    models, batch = (pair.teacher, pair.student), noise(pair.teacher, batch_size)
    with evaluating(pair.teacher), evaluating(pair.student):
        times = in_turns(models, batch, seconds)
        work = [gflop(model, batch) for model in models]
    return [
        {
            "which": which,
            "ms": sum(found.values()),
            **{f"{kind}_ms": found[kind] for kind in KINDS},
            "products_gflop": flop,
            "products_gflop_per_second": 1e3 * flop / found["products"],
        }
        for which, found, flop in zip(("dense", "student"), times, work, strict=True)
    ]


def run(name: str, batch_sizes: Sequence[int], count: int, seconds: float, results: Results) -> None:
    """The rows of a network that are missing."""
    about = {"model": name, "threads": count, "machine": processor(), "seconds": seconds}
    missing = [size for size in batch_sizes if not results.has({**about, "batch_size": size, "which": "student"})]
    if not missing:
        return
    plan = planned(name, torch.device("cpu"))
    pair = Pair(plan.original, finish(plan, BUDGET))
    for size in missing:
        for row in rows(pair, size, seconds):
            results.add({**about, "batch_size": size, **row})
            share = row["products_ms"] / row["ms"]
            say(f"{name}, batch {size}, {row['which']}: {row['ms']:.1f} ms, {share:.0%} of it products")


def table(results: Results) -> str:
    """Shares of a pass by kind, for a README."""
    lines = []
    for row in results.rows:
        shares = [f"{float(row[f'{kind}_ms']) / float(row['ms']):.1%}" for kind in KINDS]
        rate = f"{float(row['products_gflop_per_second']):.0f}"
        about = [row[name] for name in ("model", "threads", "batch_size", "which")]
        lines.append([*about, f"{float(row['ms']):.1f}", *shares, rate])
    return markdown(("model", "threads", "batch", "which", "ms", *KINDS, "GFLOP/s of products"), lines)


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME", help="timm names (default: all four)")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=BATCH_SIZES, metavar="N", help="default: 1 16")
    parser.add_argument("--threads", type=int, help="default: as torch chooses")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each network and batch size (default: 10)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the file goes (default: benchmarks/results)")
    options = parser.parse_args(words)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # else each pass prints that the profiler starts and stops
    results = Results(options.out / "profile.csv", KEY, ("seconds",))
    with threads(options.threads) as count:
        for name in options.models:
            run(name, options.batch_sizes, count, options.seconds, results)
    say(table(results))


if __name__ == "__main__":
    main()
