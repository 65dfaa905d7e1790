"""How long the hypernetwork itself takes on a large network: tokens, and one forward pass from tokens to outputs.

    python -m benchmarks.hypernet_time [--models resnet50 ...] [--hypernet FOLDER] [--threads 2] [--out FOLDER]

Without data, half of the parameters, weights as they are initialised (time does not depend on them). The directions of
the start, most of what ``generate`` takes, are not counted: `benchmarks.generate_large` measures the whole. Writes
``hypernet_time.csv``: medians of repeated calls that take turns. Aim: one pass for ResNet-50 in 1 s on two cores. A
minute.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import timm
import torch

from benchmarks.shared.common import RESULTS, Results, digest, say
from hypercompress.generator import load_hypernetwork
from hypercompress.generator.hypernetwork import tokens_of
from hypercompress.generator.registry import RELEASED
from hypercompress.generator.start import start_of
from hypercompress.preparation import prepare
from hypercompress.running.timing import interleaved
from hypercompress.specs import Budget

LIMITS = {"resnet50": 1.0}  # seconds of one pass on two cores
BUDGET = Budget(params=0.5)
KEY = ("model", "hypernet", "threads")


def run(name: str, folder: Path, seconds: float) -> dict[str, float]:
    """Medians in seconds, and what the hypernetwork read."""
    plan, network = prepare(timm.create_model(name, pretrained=False).eval(), None, "svd"), load_hypernetwork(folder)
    start = start_of(plan.spec, plan.sketches)

    def read() -> object:
        return tokens_of(plan.spec, plan.sketches, start, BUDGET)

    tokens = tokens_of(plan.spec, plan.sketches, start, BUDGET)
    with torch.no_grad():
        tokenisation, forward = interleaved([read, lambda: network(tokens, start.measured)], seconds)
    parts = {"seconds_tokens": tokenisation.ms / 1e3, "seconds_pass": forward.ms / 1e3}
    layers, bands = tokens.sketches.shape[:2]
    return {**parts, "layers": layers, "tokens": 1 + layers * (1 + bands)}


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet50"], metavar="NAME", help="timm names")
    parser.add_argument("--hypernet", type=Path, default=RELEASED, help="folder (default: the released one)")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default: 2)")
    parser.add_argument("--seconds", type=float, default=5.0, help="measured time of each part (default: 5)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the file goes (default: benchmarks/results)")
    options = parser.parse_args(words)
    results = Results(options.out / "hypernet_time.csv", KEY, ())
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    try:
        for name in options.models:
            row = {"model": name, "hypernet": digest(options.hypernet), "threads": options.threads}
            found = run(name, options.hypernet, options.seconds)
            results.add({**row, **found})
            limit, taken = LIMITS.get(name), found["seconds_pass"]
            fits = "" if limit is None else f" ({'within' if taken <= limit else 'ABOVE'} {limit:g} s)"
            say(f"{name}: tokens {found['seconds_tokens']:.3f} s, pass {taken:.3f} s{fits}")
    finally:
        torch.set_num_threads(before)


if __name__ == "__main__":
    main()
