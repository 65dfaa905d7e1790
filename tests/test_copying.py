"""Copies carry nothing over from an earlier pass, and the original is left as it was."""

import copy

import pytest
import timm
import torch
from torch import nn

from hypercompress.calling import evaluating
from hypercompress.copying import copy_of, weights_of


def test_a_cache_on_the_graph_is_left_behind() -> None:
    model = timm.create_model("levit_128s", pretrained=False, num_classes=3).eval()
    x = torch.randn(1, 3, 224, 224)
    wanted = model(x)  # with gradients: attention biases stay in the model, on this pass's graph
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    again = copy_of(model)
    assert not again.training
    assert not model.training
    torch.testing.assert_close(again(x), wanted)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.add_(0.1)
    assert not torch.allclose(again(x), wanted)


def test_flags_are_copied_module_by_module() -> None:
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3)).train()
    model[1].eval()
    assert [module.training for module in copy_of(model).modules()] == [True, True, False]
    assert [module.training for module in model.modules()] == [True, True, False]


def test_what_is_shared_is_not_copied() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    copied = copy_of(model, shared=[model[0].weight])
    assert copied[0].weight is model[0].weight
    others = {id(tensor) for tensor in weights_of(model)} - {id(model[0].weight)}
    assert others.isdisjoint(map(id, weights_of(copied)))
    assert all(map(torch.equal, weights_of(copied), weights_of(model)))
    assert list(map(id, weights_of(copy_of(model, shared=weights_of(model))))) == list(map(id, weights_of(model)))


def test_evaluating_leaves_no_cache_and_restores_the_fused_layers() -> None:
    model = timm.create_model("levit_128s", pretrained=False, num_classes=3).train()
    fused = torch.backends.mha.get_fastpath_enabled()
    with evaluating(model):
        assert not torch.backends.mha.get_fastpath_enabled()
        model(torch.randn(1, 3, 224, 224))
    assert torch.backends.mha.get_fastpath_enabled() is fused
    copy.deepcopy(model)
    assert all(module.training for module in model.modules())
