"""The time of a forward pass by kind of operation."""

import csv
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import profile
from benchmarks.profile import KINDS, gflop, in_turns, kind_of, medians
from hypercompress.running.calling import evaluating


def test_each_operation_has_one_kind() -> None:
    names = [name for names in KINDS.values() for name in names.split()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::addmm", "products"),
        ("aten::mkldnn_convolution", "products"),
        ("aten::_convolution", "products"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::native_layer_norm", "norms"),
        ("aten::clamp_min_", "activations"),
        ("aten::copy_", "copies"),
        ("aten::add_", "sums"),
        ("aten::max_pool2d_with_indices", "pooling"),
        ("aten::something_new", "other"),
        (profile.PASS, "between"),
    ],
)
def test_kinds(operation: str, kind: str) -> None:
    assert kind_of(operation) == kind


def test_medians_are_of_each_kind() -> None:
    passes = [dict.fromkeys(KINDS, 1.0) | {"products": ms} for ms in (1.0, 9.0, 2.0)]
    assert medians(passes) == dict.fromkeys(KINDS, 1.0) | {"products": 2.0}


def test_time_is_put_where_it_is_spent() -> None:
    """A network that is nearly nothing but products, and one that is nearly nothing but activations."""
    products = nn.Sequential(*(nn.Linear(512, 512) for _ in range(4)))
    activations = nn.Sequential(*(nn.GELU() for _ in range(4)))
    first, second = in_turns((products, activations), torch.randn(256, 512), 0.0)
    assert max(first, key=first.__getitem__) == "products"
    assert max(second, key=second.__getitem__) == "activations"
    assert second["products"] == second["attention"] == first["activations"] == 0


def test_operations_are_those_of_products_alone() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 10))
    assert gflop(model, torch.randn(5, 3, 8, 8)) == pytest.approx(5 * 2 * (8 * 27 * 36 + 8 * 36 * 10) / 1e9)
    layer = nn.MultiheadAttention(16, 2, batch_first=True)

    class SelfAttention(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return layer(x, x, x, need_weights=False)[0]

    with evaluating(layer):
        assert gflop(SelfAttention(), torch.randn(2, 7, 16)) == pytest.approx(2 * 2 * 7 * 4 * 16 * 16 / 1e9)


def test_a_row_for_each_network_and_batch_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A quarter of so small a transformer's products are attention, which no budget reaches.
    monkeypatch.setattr(profile, "BUDGET", profile.Budget(macs=0.7))
    words = ["--models", "test_vit", "--batch-sizes", "1", "2", "--threads", "1", "--seconds", "0"]
    profile.main([*words, "--out", str(tmp_path)])
    with (tmp_path / "profile.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["batch_size"], row["which"]) for row in rows] == [
        (size, which) for size in ("1", "2") for which in ("dense", "student")
    ]
    for row in rows:
        assert row["threads"] == "1"
        assert sum(float(row[f"{kind}_ms"]) for kind in KINDS) == pytest.approx(float(row["ms"]), rel=1e-4)
        assert all(float(row[f"{kind}_ms"]) > 0 for kind in ("products", "attention", "norms", "activations", "copies"))
        rate = 1e3 * float(row["products_gflop"]) / float(row["products_ms"])
        assert float(row["products_gflop_per_second"]) == pytest.approx(rate, rel=1e-4)
    dense, student = (float(row["products_gflop"]) for row in rows[:2])
    assert student < 0.75 * dense
    before = (tmp_path / "profile.csv").read_bytes()
    assert capsys.readouterr().out.count("| test_vit |") == len(rows)
    profile.main([*words, "--out", str(tmp_path)])
    assert (tmp_path / "profile.csv").read_bytes() == before
