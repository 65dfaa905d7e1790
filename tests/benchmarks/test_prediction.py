"""The program that sets predictions beside what was measured."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import (
    prediction,
)
from benchmarks.shared.common import Results
from hypercompress.architecture import Architecture
from hypercompress.student import Student


def test_predictions_stand_beside_what_was_measured(
    network: tuple[nn.Module, Architecture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "SHARES", (0.01, 0.5, 0.7))
    monkeypatch.setattr(prediction, "IMAGES", 96)
    monkeypatch.setattr(prediction, "TEST", 64)
    model, architecture = copy.deepcopy(network[0]), network[1]
    for parameter in model.parameters():  # zero-initialised norms would hide their branches
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    Student(model, architecture).save_pretrained(tmp_path / "teacher")
    results = Results(tmp_path / "prediction.csv", ("teacher", "share"))
    prediction.run(tmp_path / "teacher", "fashion_mnist_mini", results)
    assert [row["share"] for row in results.rows] == ["0.5", "0.7"]  # 1 % is out of reach
    first, last = (
        {
            name + end: float(row[name + end])
            for name in ("predicted_kl", "kl_scale", "kl")
            for end in ("", "_generated")
        }
        for row in results.rows
    )
    assert first["kl_scale_generated"] == last["kl_scale_generated"]
    assert first["predicted_kl"] > last["predicted_kl"] > 0
    assert min(*first.values(), *last.values()) >= 0
    before = (tmp_path / "prediction.csv").read_bytes()
    prediction.run(tmp_path / "teacher", "fashion_mnist_mini", results)
    assert (tmp_path / "prediction.csv").read_bytes() == before
    prediction.figure(results, tmp_path / "prediction.png")
    assert (tmp_path / "prediction.png").stat().st_size > 1000


def test_a_prediction_counts_where_it_can_be_judged(tmp_path: Path) -> None:
    results = Results(tmp_path / "p.csv", ("teacher", "share"))
    for share, (predicted, kl) in enumerate([(0.01, 0.019), (0.01, 0.021), (0.01, 0.2), (1e-6, 1e-5), (0.03, 0.016)]):
        made = {"predicted_kl": predicted / 4, "kl_scale": 4.0, "kl": kl}
        made |= {f"{name}_generated": value for name, value in made.items()}
        results.add({"teacher": "t", "share": share, **made, "kl_scale_generated": 1.0, "weights": "w"})
    assert prediction.points(results) == [(0.01, 0.019), (0.01, 0.021), (0.03, 0.016)]
    assert prediction.points(results, scaled=False)[0] == (0.0025, 0.019)
    assert prediction.points(results, "_generated") == prediction.points(results, scaled=False)
    first, second, *_ = prediction.summary(results).splitlines()
    assert first.startswith("as given, scaled by one measured student: 2 of 3 within a factor of 2")
    assert second.startswith("as given, the additive model as it is: 0 of 3 within")
