"""Time and memory of ``hypercompress generate``, start to saved folder.

    python -m benchmarks.generate_cost --teacher FOLDER --data fashion_mnist:ROOT [--runs 3] [--out benchmarks/results]

Runs the command in a fresh process with ``kfac`` and 1,024 images, at 5 % of the parameters, and writes
``generate_cost.csv``. Time is wall-clock time of the whole process; memory is its highest resident set (VmHWM of Linux)
above that of a process that only does the same imports. Limits: 40 s and 1.5 GB on two CPU cores. Under a minute a run.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.shared.common import RESULTS, ROOT, Results, digest, say

SECONDS, BYTES = 40.0, 1.5e9  # the limits
PROBE = """
import json, resource, sys
from pathlib import Path
import timm, torchvision
import hypercompress.cli.generate
from hypercompress.cli import main

def peak():
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    found = [int(line.split()[1]) for line in lines if line.startswith("VmHWM")]
    return 1024 * (found[0] if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

code = 0
if len(sys.argv) > 2:
    try:
        code = main(sys.argv[2:])
    except SystemExit as end:
        code = end.code
Path(sys.argv[1]).write_text(json.dumps(peak()))
sys.exit(code)
"""


@dataclass(frozen=True)
class Cost:
    """What a process took.

    Args:
        seconds: wall-clock time.
        peak: highest resident set in bytes.
    """

    seconds: float
    peak: int


def cost(words: Sequence[str]) -> Cost:
    """Run the command line with these words in a fresh process; without words only import it.

    Raises:
        CalledProcessError: it failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder) / "peak.json"
        start = time.perf_counter()
        command = [sys.executable, "-c", PROBE, str(note), *words]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return Cost(time.perf_counter() - start, json.loads(note.read_text()))


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, required=True, metavar="FOLDER", help="trained ResNet-18")
    parser.add_argument("--data", required=True, help="images for the statistics, as on the command line")
    parser.add_argument("--runs", type=int, default=3, help="repetitions (default: 3)")
    parser.add_argument("--generator", default="kfac", help="as on the command line (default: kfac)")
    parser.add_argument("--params", type=float, default=0.05, help="budget (default: 0.05)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the file goes (default: benchmarks/results)")
    options = parser.parse_args(words)
    results = Results(options.out / "generate_cost.csv", ("generator", "images", "params", "run"))
    imports = cost([])
    for run in range(options.runs):
        with tempfile.TemporaryDirectory() as folder:
            command = ["generate", str(options.teacher), f"{folder}/student", "--params", str(options.params)]
            command += ["--data", options.data, "--images", "1024", "--generator", options.generator]
            whole = cost(command)
        row = {"generator": options.generator, "images": 1024, "params": options.params, "run": run}
        extra = whole.peak - imports.peak
        measured = {
            "seconds": whole.seconds,
            "seconds_imports": imports.seconds,
            "megabytes_above_imports": extra / 1e6,
        }
        results.add({**row, **measured, "megabytes_imports": imports.peak / 1e6, "weights": digest(options.teacher)})
        verdict = "within" if whole.seconds <= SECONDS and extra <= BYTES else "ABOVE"
        say(f"{whole.seconds:.1f} s, {extra / 1e6:.0f} MB above the imports: {verdict} 40 s and 1500 MB")


if __name__ == "__main__":
    main()
