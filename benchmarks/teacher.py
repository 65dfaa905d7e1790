"""The teacher of the ResNet-18 benchmark, trained by the config that users run."""

import subprocess
import sys
from pathlib import Path

from benchmarks.common import ROOT, say

FOLDER = ROOT / "runs" / "benchmark_teacher"


def train_teacher(data: str, folder: Path = FOLDER) -> Path:
    """Train timm's resnet18 by ``configs/teacher.yaml`` unless that was done before; two CPU cores, about 6 minutes.

    Raises:
        CalledProcessError: the training failed; its messages have been printed.
    """
    if (folder / "config.json").is_file():
        say(f"teacher: {folder}, trained before")
        return folder
    say(f"teacher: training into {folder}")
    command = [sys.executable, "train.py", "fit", "--config", "configs/teacher.yaml"]
    subprocess.run([*command, "--data.data", data, "--out", str(folder)], cwd=ROOT, check=True)
    return folder
