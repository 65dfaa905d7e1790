"""A machine without a clock: times follow from multiply-accumulates, so that tests of latency always say the same."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypercompress import latency
from hypercompress.inspection import inspect
from hypercompress.latency import measure_latency
from hypercompress.sketch import sketch
from hypercompress.specs import LayerSpec, ModelSpec, Unit


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(64, 4, 1),
        nn.Flatten(),
        nn.Linear(4 * 16, 40),
        nn.Linear(40, 10),
    ).eval()


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def ratio(layer: LayerSpec, rank: int, inner: int) -> float:
    """A machine on which time follows multiply-accumulates, and each part of a layer adds a tenth of the dense one."""
    share = layer.cost(Unit.MACS, rank, inner or None) / layer.dense_macs
    return share + (0.2 if inner else 0.1)


def stop_clocks(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    """A nanosecond for each multiply-accumulate of a dense layer. Gives the file of the cache in that folder."""

    def inside(model: nn.Module, spec: ModelSpec, *_: Any) -> tuple[float, dict[str, float], dict[str, Tensor]]:
        times = {layer.name: float(layer.dense_macs) for layer in spec.candidates}
        return 1.25 * sum(times.values()), times, {name: torch.zeros(1, 3) for name in times}

    def ratios(layer: LayerSpec, *_: Any) -> list[tuple[int, int, float]]:
        forms = [*latency._forms(layer), *((r, 0) for r in range(1, layer.max_rank + 1))]
        return [(r, q, ratio(layer, r, q)) for r, q in dict.fromkeys(forms)]

    monkeypatch.setattr(latency, "_inside", inside)
    monkeypatch.setattr(latency, "_ratios", ratios)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return cache / "hypercompress" / "latency.json"


def timed(machine: Path) -> tuple[nn.Module, ModelSpec, dict[str, Any]]:
    model = network()
    spec = measure_latency(model, inspect(model, images()), images(1))
    return model, spec, sketch(model, spec, [images(16)])
