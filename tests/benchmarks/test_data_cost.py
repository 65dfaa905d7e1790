"""What images add to a generation, on a network small enough for seconds."""

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from benchmarks import data_cost
from hypercompress.specs import ModelSpec


def test_a_row_with_times_in_passes_and_memory(tmp_path: Path) -> None:
    words = ["--models", "test_vit2", "--images", "24", "--batch-size", "6", "--timed", "12"]
    data_cost.main([*words, "--out", str(tmp_path)])
    with (tmp_path / "data_cost.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert (row["images"], row["batch_size"], row["timed"]) == ("24", "6", "12")
    plain, curvature, with_, without = (
        float(row[f"seconds_{name}"]) for name in ("plain", "curvature", "with", "without")
    )
    rounded = 1e-5 * (with_ + without) / plain  # the file has six digits of each, and their difference may be small
    assert float(row["added_passes"]) == pytest.approx((with_ - without) / plain, rel=1e-4, abs=rounded)
    assert float(row["curvature_passes"]) == pytest.approx(curvature / plain, rel=1e-4)
    assert float(row["megabytes"]) >= float(row["megabytes_model"]) > 0.1


def test_a_part_is_counted_as_often_as_all_have_as_many(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[int]] = {"plain": [], "measure": []}
    monkeypatch.setattr(data_cost, "plain", lambda _, batches: seen["plain"].append(len(batches)))
    monkeypatch.setattr(data_cost, "measure", lambda _, __, batches: seen["measure"].append(len(list(batches))))
    monkeypatch.setattr(data_cost, "prepare", lambda *_: SimpleNamespace(teacher=None, spec=ModelSpec((), 0, 0, ())))
    monkeypatch.setattr(data_cost, "finish", lambda *_: None)
    monkeypatch.setattr(data_cost, "seconds", lambda run: (run(), 3.0)[1])
    batches = [torch.zeros(2, 3)] * 8
    found = data_cost.costs(nn.Linear(3, 2), batches, "auto", timed=2)
    assert seen == {"plain": [1, 2, 2], "measure": [2]}  # the first is not timed
    assert (found["seconds_plain"], found["seconds_curvature"]) == (12.0, 12.0)
    assert found["curvature_passes"] == 1.0


def test_the_trained_network_sees_photographs_and_then_crops_of_them(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[bool] = []

    def opened(*_: object, train: bool, augment: bool) -> list[tuple[torch.Tensor, int]]:
        assert train
        seen.append(augment)
        return [(torch.full((3, 8, 8), float(augment)), 0)] * 5

    monkeypatch.setattr(data_cost, "open_teacher", lambda _: (nn.Linear(3, 2), None))
    monkeypatch.setattr(data_cost, "Preprocess", SimpleNamespace(of=lambda _: None))
    monkeypatch.setattr(data_cost, "open_data", opened)
    monkeypatch.setattr(data_cost, "loader", torch.utils.data.DataLoader)
    got: list[object] = []
    monkeypatch.setattr(data_cost, "costs", lambda *given: got.append(given) or {})
    data_cost.measured_trained(tmp_path, 8, 2, "auto", 4)
    ((_, batches, generator, timed),) = got  # type: ignore[misc]
    assert seen == [False, True]
    assert [(len(batch), float(batch.mean())) for batch in batches] == [(2, 0.0), (2, 0.0), (2, 1.0), (2, 1.0)]
    assert (generator, timed) == ("auto", 2)
