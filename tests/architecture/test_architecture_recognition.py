"""A timm model in memory is recognised as what builds it again, and a changed one is not."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import hypercompress
from hypercompress.architecture import architecture_of, build, own_input_size
from tests.small_models import FAMILIES, SMALL, same


@pytest.mark.parametrize("name", FAMILIES)
def test_a_timm_model_is_recognised_and_left_as_it_was(name: str) -> None:
    model = timm.create_model(name, pretrained=False, **SMALL).train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    architecture = architecture_of(model)
    assert architecture is not None
    assert architecture.name.startswith(name)
    assert architecture.args == SMALL
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_new_head_and_constructor_arguments_are_recognised() -> None:
    model = timm.create_model("test_vit", pretrained=False, img_size=32, qkv_bias=False)
    model.reset_classifier(5)
    architecture = architecture_of(model)
    assert architecture is not None
    rebuilt = build(architecture)
    rebuilt.load_state_dict(model.state_dict())
    assert same(model.eval(), rebuilt, 3, 32, 32)


def test_channels_and_size_are_read_off_a_model_that_notes_nothing() -> None:
    model = timm.create_model("test_vit", pretrained=False, img_size=32, in_chans=1)
    if hasattr(model, "_model_args"):
        del model._model_args
    architecture = architecture_of(model)
    assert architecture is not None
    assert architecture.args == {"num_classes": 1000, "in_chans": 1, "img_size": [32, 32]}


def test_a_stem_that_folds_pixels_into_channels_is_recognised() -> None:
    architecture = architecture_of(timm.create_model("tresnet_m", pretrained=False, num_classes=10))
    assert architecture is not None
    assert architecture.args == {"num_classes": 10, "in_chans": 3}


def _replace_layer(model: nn.Module) -> None:
    model.fc = nn.Sequential(nn.Linear(model.num_features, 10))


def _replace_activation(model: nn.Module) -> None:
    model.layer1[0].act1 = nn.Tanh()


def _replace_forward(model: nn.Module) -> None:
    forward = model.forward
    model.forward = lambda x: 2 * forward(x)


def _hide_shape(model: nn.Module) -> None:
    model.conv1[0].stride = (1, 1)


def _lose_name(model: nn.Module) -> None:
    model.pretrained_cfg = {}


CHANGES = [_replace_layer, _replace_activation, _replace_forward, _hide_shape, _lose_name]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_model_is_not_recognised(change: Callable[[nn.Module], None]) -> None:
    model = timm.create_model("test_resnet", pretrained=False, **SMALL)
    assert architecture_of(model) is not None
    change(model)
    assert architecture_of(model) is None


def test_other_modules_are_not_recognised() -> None:
    assert architecture_of(nn.Linear(2, 2)) is None


@pytest.mark.parametrize(
    ("name", "args", "size"),
    [
        ("test_resnet", {"in_chans": 1}, (1, 160, 160)),
        ("test_vit", {"in_chans": 1, "img_size": 64}, (1, 64, 64)),
        ("test_vit", {}, (3, 160, 160)),
    ],
)
def test_a_model_is_compressed_and_exported_at_its_own_input_size(
    name: str, args: dict[str, Any], size: tuple[int, ...], tmp_path: Path
) -> None:
    model = timm.create_model(name, num_classes=5, **args).eval()
    assert own_input_size(model) == size
    student = hypercompress.compress(model, hypercompress.Budget(params=0.5), generator="svd")
    assert own_input_size(student) == size
    exported = hypercompress.export(student, tmp_path / "s.pt2")
    assert Path(exported.file).is_file()
    assert own_input_size(nn.Linear(2, 2)) is None
