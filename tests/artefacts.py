"""A student folder as small as can be."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hypercompress.saved.artefact import save

CONFIGURATION: dict[str, Any] = {"architecture": None, "ranks": {"0": 2}}
COST = {"params": 4000, "macs": 50_000, "bytes": 16_000}
REPORTED: dict[str, Any] = {
    "teacher": COST,
    "student": {name: value // 2 for name, value in COST.items()},
    "budget": {"unit": "params", "target": 0.5, "achieved": 0.4987},
    "generator": {"name": "kfac", "strength": 0.0},
    "fidelity": {"agreement": 0.9, "kl": 0.01, "top1_teacher": None, "top1_student": None, "images": 10},
}


def write(folder: Path, state: dict[str, Tensor] | None = None, overwrite: bool = False) -> dict[str, Tensor]:
    state = {"0.weight": torch.randn(4, 3)} if state is None else state
    save(folder, state=state, config=CONFIGURATION, report=REPORTED, overwrite=overwrite)
    return state
