"""A bias that is no parameter."""

import pytest
import torch
from torch import nn

from hypercompress import Budget, compress


@pytest.mark.parametrize("how", ["buffer", "plain tensor"])
@pytest.mark.parametrize("name", ["fc", "qkv"])
def test_a_layer_whose_bias_is_no_parameter_stays_dense(name: str, how: str) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(), torch.randn(64, 16)
    for path, layer in ((name, nn.Linear(16, 48)), ("act", nn.GELU()), ("head", nn.Linear(48, 10))):
        model.add_module(path, layer)
    layer = model.get_submodule(name)
    del layer.bias
    if how == "buffer":
        layer.register_buffer("bias", torch.randn(48))
    else:
        layer.bias = torch.randn(48)
    student = compress(model.eval(), Budget(params=0.9), x.split(8), "kfac")
    rows = {layer["name"]: layer for layer in student.report["layers"]}
    assert rows[name]["status"] == "unsupported"
    assert rows[name]["reason"] == ("it also holds a bias that is no parameter, which its low-rank form would not have")
    assert list(student.ranks) == ["head"]
    assert torch.equal(student.model.get_submodule(name)(x), layer(x))
