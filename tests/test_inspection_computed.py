"""Layers whose weight is computed anew in each pass: weight norm, spectral norm, pruning."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from hypercompress import Budget, compress
from hypercompress.errors import ModelError
from hypercompress.inspection import inspect, require_supported
from hypercompress.specs import Status
from tests.lookup import row


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("wrap", "remedy"),
    [
        (nn.utils.parametrizations.weight_norm, "parametrize.remove_parametrizations"),
        (nn.utils.parametrizations.spectral_norm, "parametrize.remove_parametrizations"),
        (nn.utils.weight_norm, "remove_weight_norm"),
        (lambda layer: prune.l1_unstructured(layer, "weight", 0.3), "prune.remove"),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_computed_in_each_pass_are_unsupported(wrap: Any, remedy: str, bias: bool) -> None:
    """The layer is named, once, with all that its weight is computed of; what is undone is a layer like others."""
    model = nn.Sequential(wrap(nn.Linear(8, 8, bias=bias)), nn.Linear(8, 8))
    spec = inspect(model, torch.randn(2, 8))
    assert [layer.name for layer in spec.candidates] == ["1"]
    assert [layer.name for layer in spec.layers] == ["0", "1"]
    found = row(spec, "0")
    assert found.status is Status.UNSUPPORTED
    assert "its weight is computed anew in each pass" in found.reason
    assert remedy in found.reason
    assert found.params == sum(p.numel() for p in model[0].parameters()) == spec.params - row(spec, "1").params
    with pytest.raises(ModelError, match=r"1 of 2 layers are unsupported: 0 \(its weight is computed anew"):
        require_supported(model, spec)


def test_a_vector_computed_in_each_pass_is_no_matrix() -> None:
    norm = nn.utils.parametrize.register_parametrization(nn.LayerNorm(8), "weight", nn.Softplus(), unsafe=True)
    found = row(inspect(nn.Sequential(nn.Linear(8, 8), norm), torch.randn(2, 8)), "1")
    assert (found.status, found.params) == (Status.KEPT, 16)


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_norm_that_computes_what_it_holds_gives_nothing_back(part: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24, bias=False), nn.BatchNorm1d(24), nn.Tanh(), nn.Linear(24, 8))
    x = torch.randn(128, 16)
    assert row(inspect(model, x), "0").follower == "1"
    nn.utils.parametrize.register_parametrization(model[1], part, nn.Softplus(), unsafe=True)
    assert row(inspect(model, x), "0").follower is None
    student = compress(model.eval(), Budget(params=0.7), x.split(16), "kfac")
    assert "0" in student.ranks
    assert torch.equal(getattr(student.model[1], part), getattr(model[1], part))
