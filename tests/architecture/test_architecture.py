"""timm models as data: building them from names, arguments and sizes, and every way in which that can fail."""

import json
from typing import Any

import pytest
import timm
import torch
from torch import nn

from hypercompress.architecture import Architecture, build, load_timm
from hypercompress.architecture.names import near_names
from hypercompress.errors import ModelError
from tests.small_models import FAMILIES, SMALL, same


@pytest.mark.parametrize("name", FAMILIES)
def test_a_loaded_model_is_rebuilt_from_json_alone(name: str) -> None:
    model, architecture = load_timm(name, model_args=SMALL, pretrained=False)
    text = json.dumps({"name": architecture.name, "args": architecture.args, "cfg": architecture.pretrained_cfg})
    read = json.loads(text)
    restored = Architecture(read["name"], read["args"], read["cfg"])
    rebuilt = build(restored)
    rebuilt.load_state_dict(model.state_dict())
    assert restored == architecture
    assert architecture.args == SMALL
    assert not rebuilt.training
    assert not model.training
    assert same(model, rebuilt, *model.pretrained_cfg["input_size"])


def test_json_lists_come_back_as_tuples_on_the_model() -> None:
    overlay = {"input_size": [1, 28, 28], "mean": [0.3], "std": [0.4], "crop_pct": 0.9}
    model, architecture = load_timm("test_resnet", pretrained=False, pretrained_cfg=overlay)
    for made in (model, build(Architecture("test_resnet", architecture.args, architecture.pretrained_cfg))):
        assert made.pretrained_cfg["input_size"] == (1, 28, 28)
        assert made.pretrained_cfg["mean"] == (0.3,)
        assert made.pretrained_cfg["crop_pct"] == 0.9
        assert made.default_cfg is made.pretrained_cfg
    assert architecture.pretrained_cfg["input_size"] == [1, 28, 28]
    assert not {"url", "file", "hf_hub_id", "source", "architecture"} & set(architecture.pretrained_cfg)


def test_an_input_size_reaches_channels_and_fixed_image_size() -> None:
    model, architecture = load_timm(
        "test_vit", pretrained=False, pretrained_cfg={"input_size": [1, 32, 64], "num_classes": 7}
    )
    assert model(torch.zeros(1, 1, 32, 64)).shape == (1, 7)
    assert architecture.args == {"num_classes": 7, "in_chans": 1, "img_size": [32, 64]}
    assert model.pretrained_cfg["crop_pct"] == 1.0, "the pretrained crop belongs to the pretrained size"


def test_the_recorded_input_size_is_the_models() -> None:
    model, _ = load_timm("test_vit", model_args={"in_chans": 1, "img_size": 32}, pretrained=False)
    assert model.pretrained_cfg["input_size"] == (1, 32, 32)
    assert model.pretrained_cfg["crop_pct"] == timm.get_pretrained_cfg("test_vit").crop_pct


def test_a_tag_stays_in_the_name() -> None:
    _, architecture = load_timm("test_resnet.r160_in1k", pretrained=False)
    assert architecture.name == "test_resnet.r160_in1k"


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"received unknown model name 'resnt50'.*did you mean .*resnet50"):
        load_timm("resnt50", pretrained=False)
    with pytest.raises(ModelError, match=r"'!!'.*list_models\(\)"):
        build(Architecture("!!"))


def test_folders_are_named_before_models() -> None:
    assert near_names("test_resnt", ["test_resnets", "s/test_res"]).startswith(
        "did you mean the student folder test_resnets or s/test_res, or test_resnet, "
    )
    assert near_names("studen", ["student"]) == "did you mean the student folder student?"


def test_a_class_of_ones_own_is_no_name() -> None:
    with pytest.raises(ModelError, match=r"'MyNet'.*; a module of your own class is passed to hypercompress.compress"):
        load_timm("MyNet", pretrained=False)


def test_unknown_tags_are_answered_with_the_nearest() -> None:
    with pytest.raises(ModelError, match=r"a tag timm does not know.*resnet50\.a1_in1k"):
        load_timm("resnet50.a1_in1", pretrained=False)


def test_a_bare_repository_name_is_told_its_prefix() -> None:
    with pytest.raises(ModelError, match="hf-hub:timm/resnet50"):
        load_timm("timm/resnet50", pretrained=False)


def test_unknown_prefixes_are_refused() -> None:
    with pytest.raises(ModelError, match="replace the prefix 'ftp'"):
        load_timm("ftp:resnet50", pretrained=False)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_efficientnet"])
def test_every_refused_argument_is_named(name: str) -> None:
    with pytest.raises(ModelError, match="does not take: bogus, worse; expected") as caught:
        load_timm(name, model_args={"bogus": 1, "num_classes": 10, "worse": 2}, pretrained=False)
    assert "num_classes" not in str(caught.value)


def test_an_argument_of_the_wrong_kind_is_quoted() -> None:
    with pytest.raises(ModelError, match=r'does not take: \{"num_classes": "ten"\}'):
        load_timm("test_resnet", model_args={"num_classes": "ten"}, pretrained=False)


@pytest.mark.parametrize("args", [{"checkpoint_path": "x.pth"}, {"pretrained": True}, {"act_layer": nn.ReLU}])
def test_arguments_that_load_files_or_code_are_refused(args: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=f"received model arguments {next(iter(args))}; expected plain JSON"):
        Architecture("test_resnet", args)


@pytest.mark.parametrize("key", ["url", "file", "hf_hub_id", "architecture", "colour"])
def test_cfg_entries_that_name_places_or_nothing_are_refused(key: str) -> None:
    with pytest.raises(ModelError, match=f"received pretrained_cfg entries {key}; expected"):
        load_timm("test_resnet", pretrained=False, pretrained_cfg={key: "x", "mean": [0.5, 0.5, 0.5]})


def test_impossible_input_sizes_are_refused() -> None:
    with pytest.raises(ModelError, match="expected channels, height and width"):
        load_timm("test_resnet", pretrained=False, pretrained_cfg={"input_size": [28, 28]})
    with pytest.raises(ModelError, match=r"input_size \[1, 28, 28\] and in_chans 3"):
        load_timm(
            "test_resnet", model_args={"in_chans": 3}, pretrained=False, pretrained_cfg={"input_size": [1, 28, 28]}
        )
