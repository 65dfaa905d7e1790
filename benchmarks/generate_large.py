"""Time and memory of ``hypercompress generate`` on large networks, without data, start to saved folder.

    python -m benchmarks.generate_large [--models resnet50 ...] [--device cpu|cuda] [--out benchmarks/results]

Runs the command in a fresh process, half of the parameters, the released hypernetwork, weights as they are initialised
(time does not depend on them). Writes ``generate_large.csv``, or of another device ``generate_large_cuda.csv``. Limits
on two CPU cores: 20 s, 60 s and 4 minutes for ResNet-50, ViT-B and ViT-L, and three times the model plus 2 GB above the
imports (of the processor's memory, on whatever device). Under ten minutes.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import timm
import torch

from benchmarks.generate_cost import cost
from benchmarks.shared.common import RESULTS, Results, named, processor, say

KEY = ("model", "generator", "params")
LIMITS = {"resnet50": 20.0, "vit_base_patch16_224": 60.0, "vit_large_patch16_224": 240.0}


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(LIMITS), metavar="NAME", help="timm names")
    parser.add_argument("--generator", default="auto", help="as on the command line (default: auto)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--params", type=float, default=0.5, help="budget (default: 0.5)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the file goes (default: benchmarks/results)")
    options = parser.parse_args(words)
    results = Results(options.out / named("generate_large", options.device), KEY, ())
    imports = cost([])
    for name in options.models:
        model = timm.create_model(name, pretrained=False)
        size = sum(4 * p.numel() for p in model.parameters())
        del model
        with tempfile.TemporaryDirectory() as folder:
            words = ["generate", name, f"{folder}/student", "--no-pretrained", "--params", str(options.params)]
            whole = cost([*words, "--generator", options.generator, "--device", options.device])
        extra, allowed = whole.peak - imports.peak, 3 * size + 2e9
        row = {"model": name, "generator": options.generator, "params": options.params}
        measured = {"seconds": whole.seconds, "seconds_imports": imports.seconds}
        device = processor() if options.device == "cpu" else torch.cuda.get_device_name(options.device)
        memory = {"megabytes_above_imports": extra / 1e6, "megabytes_model": size / 1e6}
        results.add({**row, **measured, **memory, "device": device})
        limit = LIMITS.get(name)
        time = "" if limit is None else f" ({'within' if whole.seconds <= limit else 'ABOVE'} {limit:g} s)"
        fits = "within" if extra <= allowed else "ABOVE"
        say(f"{name}: {whole.seconds:.1f} s{time}, {extra / 1e6:.0f} MB ({fits} {allowed / 1e6:.0f} MB)")


if __name__ == "__main__":
    main()
