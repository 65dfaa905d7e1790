"""The program that compares a fused projection with three."""

import copy
from pathlib import Path

import pytest
import torch

from benchmarks import (
    qkv,
)
from benchmarks.shared.common import Results
from hypercompress.architecture import load_timm
from hypercompress.packed.unpacking import unpack
from hypercompress.student import Student


def test_a_fused_projection_is_compared_with_three(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are generated at equal budgets, one with a single layer and one with three, and the verdict counts pairs."""
    torch.manual_seed(0)
    model, architecture = load_timm(
        "test_vit",
        model_args={"in_chans": 1, "num_classes": 10, "img_size": 28, "patch_size": 7},
        pretrained=False,
        pretrained_cfg={"input_size": [1, 28, 28], "mean": [0.286], "std": [0.353], "crop_pct": 1.0},
    )
    Student(model, architecture).save_pretrained(tmp_path / "vit")
    fused = qkv.keep_fused(copy.deepcopy(model))
    assert unpack(fused) is fused
    assert unpack(model) is not model
    monkeypatch.setattr(qkv, "IMAGES", 96)
    monkeypatch.setattr(qkv, "SHARES", (0.01, 0.5))
    words = ["--data", "fashion_mnist_mini", "--teacher", str(tmp_path / "vit"), "--seeds", "1", "--out", str(tmp_path)]
    qkv.main(words)
    results = Results(tmp_path / "qkv.csv", qkv.KEY)
    assert len(results.rows) == 8
    assert len({row["predicted_kl"] for row in results.rows if row["share"] == "0.5"}) == 4  # one and three differ
    assert all(row["kl"] == "" for row in results.rows if row["share"] == "0.01")  # out of reach: said, not skipped
    assert "of 2 pairs" in qkv.verdict(results)
    before = (tmp_path / "qkv.csv").read_text()
    qkv.main(words)
    assert (tmp_path / "qkv.csv").read_text() == before
