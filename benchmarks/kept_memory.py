"""What keeping freed memory is worth to steps on a CPU: `hypercompress.running.memory.keep_freed`.

    python -m benchmarks.kept_memory [--models resnet50 ...] [--batch 16] [--rounds 3] [--out FOLDER]

Steps of AdamW on random images of 224 x 224, random weights (time does not depend on them): each model in processes of
its own that take turns, with freed memory kept and as the allocator does it. Writes ``kept_memory.csv``: the median of
all steps but the first of each process, and the highest peak of memory. Three minutes on two cores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.shared.common import RESULTS, Results, say
from hypercompress.running.memory import CHOSEN

MODELS = ("resnet18", "resnet50", "tf_efficientnet_lite0", "convnext_tiny", "vit_small_patch16_224")
KEY = ("model", "batch", "threads")
STEPS = """
import json, resource, sys, time, timm, torch
from hypercompress.running.memory import keep_freed
name, batch, threads, kept = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4] == "kept"
torch.set_num_threads(threads)
if kept and not keep_freed():
    raise SystemExit("freed memory cannot be kept here")
model = timm.create_model(name, pretrained=False).train()
optimizer, images, times = torch.optim.AdamW(model.parameters()), torch.randn(batch, 3, 224, 224), []
for _ in range(5):
    start = time.perf_counter()
    model(images).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    times.append(time.perf_counter() - start)
print(json.dumps([times[1:], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20]))
"""


def measured(name: str, batch: int, threads: int, kept: bool) -> tuple[list[float], float]:
    """Seconds of each step, and the peak of memory in GiB, of a process of its own."""
    command = [sys.executable, "-c", STEPS, name, str(batch), str(threads), "kept" if kept else "freed"]
    environment = {key: value for key, value in os.environ.items() if key not in CHOSEN}
    printed = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    times, peak = json.loads(printed)
    return times, peak


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME", help="timm names")
    parser.add_argument("--batch", type=int, default=16, help="images of a step (default: 16)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch (default: all)")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each kind (default: 3)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the file goes (default: benchmarks/results)")
    options = parser.parse_args(words)
    results = Results(options.out / "kept_memory.csv", KEY, ())
    for name in options.models:
        key = {"model": name, "batch": options.batch, "threads": options.threads}
        if results.has(key):
            continue
        found: dict[bool, list[tuple[list[float], float]]] = {False: [], True: []}
        for _ in range(options.rounds):
            for kept, runs in found.items():
                runs.append(measured(name, options.batch, options.threads, kept))
        seconds = [statistics.median(time for times, _ in found[k] for time in times) for k in (False, True)]
        peaks = [max(peak for _, peak in found[k]) for k in (False, True)]
        row = {"seconds_freed": seconds[0], "seconds_kept": seconds[1], "gib_freed": peaks[0], "gib_kept": peaks[1]}
        results.add({**key, **row})
        say(f"{name}: {seconds[0]:.2f} -> {seconds[1]:.2f} s a step, {peaks[0]:.2f} -> {peaks[1]:.2f} GiB")


if __name__ == "__main__":
    main()
