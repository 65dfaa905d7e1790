"""A skeleton whose layers have another stride or padding than those that were factored: weights fit, outputs do not."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hypercompress import Budget, compress, from_pretrained
from hypercompress.errors import ArtefactError
from hypercompress.saved import artefact
from hypercompress.saved.configuration import geometry_of


def network(**options: Any) -> nn.Sequential:
    options = {"padding": 1} | options
    layers = nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, **options), nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(32, 20)).eval()


@pytest.mark.parametrize(
    "options", [{"stride": 2}, {"padding_mode": "circular"}, {"padding": 2, "dilation": 2}], ids=str
)
def test_a_skeleton_of_another_geometry_is_refused(options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    student = compress(network(), Budget(params=0.4), [torch.randn(6, 3, 8, 8) for _ in range(3)], "svd", refit=False)
    assert "2" in student.ranks
    student.save_pretrained(tmp_path / "s")
    with pytest.raises(ArtefactError, match=r"received a skeleton whose layer 2 has .*; expected .* build it with the"):
        from_pretrained(tmp_path / "s", skeleton=network(**options))
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(from_pretrained(tmp_path / "s", skeleton=network())(x), student(x))
    # As saved by an earlier version, whose folder does not say.
    saved = artefact.load(tmp_path / "s")
    assert saved.config["geometry"] == json.loads(json.dumps(geometry_of(student.model)))
    known = {key: value for key, value in saved.config.items() if key in ("architecture", "ranks", "input_ranks")}
    artefact.save(tmp_path / "old", state=saved.state, config={**known, "unpacked": []}, report={}, overwrite=False)
    assert from_pretrained(tmp_path / "old", skeleton=network(**options)).ranks == student.ranks
    broken = {**known, "unpacked": [], "geometry": ["2"]}
    artefact.save(tmp_path / "broken", state=saved.state, config=broken, report={}, overwrite=False)
    with pytest.raises(ArtefactError, match="with a geometry that is no table"):
        from_pretrained(tmp_path / "broken", skeleton=network())


def test_linear_layers_have_none() -> None:
    model = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 2)).eval()
    student = compress(model, Budget(params=0.6), [torch.randn(9, 12)], "svd")
    assert student.ranks
    assert geometry_of(student.model) == {}
