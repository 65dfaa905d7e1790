"""The teacher of the ResNet-18 benchmark, trained by the config that users run."""

import subprocess
import sys
from pathlib import Path

from benchmarks.shared.common import ROOT, say

FOLDER = ROOT / "runs" / "teacher" / "teacher"  # as the config says


def train_teacher(data: str) -> Path:
    """Train timm's resnet18 by ``configs/teacher.yaml`` unless that was done before; two CPU cores, about 8 minutes.

    Raises:
        CalledProcessError: the training failed; its messages have been printed.
    """
    if (FOLDER / "config.json").is_file():
        say(f"teacher: {FOLDER}, trained before")
        return FOLDER
    say(f"teacher: training into {FOLDER}")
    command = [sys.executable, "train.py", "fit", "--config", "configs/teacher.yaml", "--data.data", data]
    subprocess.run(command, cwd=ROOT, check=True)
    return FOLDER
