"""Weights of timm models: from the hub, a local folder or a checkpoint, and every way in which that can fail."""

import json
import os
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hypercompress.architecture import architecture_of, build, load_timm, read_weights
from hypercompress.architecture.weights import average_in
from hypercompress.errors import ModelError, NonFiniteError
from tests.small_models import SMALL, same


class Runs:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (self.command,)


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return timm.create_model("test_resnet", pretrained=False, **SMALL).state_dict()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub client refuses at once instead of trying for a minute."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.parametrize("name", ["test_resnet", "hf-hub:timm/test_resnet.r160_in1k"])
def test_unreachable_weights_say_what_to_pass(name: str, offline: None) -> None:
    with pytest.raises(ModelError, match="--checkpoint FILE"):
        load_timm(name)


def test_a_model_without_pretrained_weights_says_what_to_pass() -> None:
    untrained = next(n for n in timm.list_models("convnext*") if not timm.is_model_pretrained(n))
    with pytest.raises(ModelError, match=r"No pretrained weights exist.*--checkpoint FILE or --no-pretrained"):
        load_timm(untrained)


def test_bad_arguments_are_blamed_before_the_network(offline: None) -> None:
    with pytest.raises(ModelError, match="does not take: bogus"):
        load_timm("test_resnet", model_args={"bogus": 1})


def _local(folder: Path, weights: dict[str, Tensor] | None, **changes: Any) -> str:
    cfg = {"input_size": [1, 40, 40], "num_classes": 10, "mean": [0.5], "std": [0.5], "first_conv": "conv1.0"}
    config = {"architecture": "test_resnet", "num_classes": 10, "model_args": {"in_chans": 1}, "pretrained_cfg": cfg}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | changes))
    if weights is not None:
        save_file(weights, folder / "model.safetensors")
    return f"local-dir:{folder}"


def test_a_local_folder_keeps_only_its_architecture(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    model, architecture = load_timm(_local(tmp_path / "model", weights))
    assert architecture.name == "test_resnet"
    assert architecture.args == {"in_chans": 1}
    assert str(tmp_path) not in json.dumps([architecture.args, architecture.pretrained_cfg])
    rebuilt = build(architecture)
    rebuilt.load_state_dict(weights)
    assert rebuilt.num_classes == 10
    assert rebuilt.pretrained_cfg["input_size"] == (1, 40, 40)
    assert same(model, rebuilt, 1, 40, 40)


def test_broken_local_folders_are_named(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        load_timm(f"local-dir:{tmp_path / 'nowhere'}")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        load_timm(_local(tmp_path / "list", weights, pretrained_cfg=3))
    with pytest.raises(ModelError, match="unknown model name 'test_resnett'"):
        load_timm(_local(tmp_path / "name", weights, architecture="test_resnett"))
    with pytest.raises(ModelError, match="pretrained weights cannot be loaded"):
        load_timm(_local(tmp_path / "empty", None))
    with pytest.raises(ModelError, match="model arguments checkpoint_path"):
        load_timm(_local(tmp_path / "evil", weights, model_args={"checkpoint_path": "x"}))


def _wrap_none(weights: dict[str, Tensor]) -> object:
    return weights


def _wrap_state_dict(weights: dict[str, Tensor]) -> object:
    return {"state_dict": weights, "epoch": 3, "args": Namespace(lr=0.1)}


def _wrap_model(weights: dict[str, Tensor]) -> object:
    return {"model": weights}


def _wrap_average(weights: dict[str, Tensor]) -> object:
    return {"state_dict": {k: torch.zeros_like(v) for k, v in weights.items()}, "state_dict_ema": weights}


def _wrap_parallel(weights: dict[str, Tensor]) -> object:
    return {"state_dict": {f"module._orig_mod.{k}": v for k, v in weights.items()}}


def _wrap_lightning(weights: dict[str, Tensor]) -> object:
    return {"state_dict": {f"model.{k}": v for k, v in weights.items()}, "global_step": 1}


def _wrap_old(weights: dict[str, Tensor]) -> object:
    return {k: v for k, v in weights.items() if not k.endswith("num_batches_tracked")}


WRAPS = [_wrap_none, _wrap_state_dict, _wrap_model, _wrap_average, _wrap_parallel, _wrap_lightning, _wrap_old]


@pytest.mark.parametrize("wrap", WRAPS, ids=lambda wrap: wrap.__name__)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt"])
def test_checkpoints_load_bitwise(
    wrap: Callable[[dict[str, Tensor]], object], suffix: str, tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(wrap(weights), path)
    model, _ = load_timm("test_resnet", checkpoint=path, model_args=SMALL)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_safetensors_load_bitwise_with_no_network(tmp_path: Path, weights: dict[str, Tensor], offline: None) -> None:
    save_file(weights, tmp_path / "weights.safetensors")
    read = read_weights(tmp_path / "weights.safetensors")
    model, _ = load_timm("test_resnet", checkpoint=tmp_path / "weights.safetensors", model_args=SMALL)
    assert read.keys() == weights.keys()
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())


def test_a_misfit_names_the_keys(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    wrong = {k: v for k, v in weights.items() if k not in ("bn1.weight", "layer1.0.bn1.bias")}
    wrong |= {"extra.one": torch.ones(1), "extra.two": torch.ones(1), "fc.bias": torch.ones(7)}
    torch.save(wrong, tmp_path / "w.pth")
    with pytest.raises(ModelError) as caught:
        load_timm("test_resnet", checkpoint=tmp_path / "w.pth", model_args=SMALL)
    message = str(caught.value)
    assert "2 missing: bn1.weight, layer1.0.bn1.bias" in message
    assert "2 unexpected: extra.one, extra.two" in message
    assert "1 of another shape: fc.bias [7] for [10]" in message
    assert '"num_classes": 10' in message
    assert "--model-args" in message
    assert "\n" not in message


@pytest.mark.parametrize(("given", "advised"), [({"img_size": 96}, True), ({"num_classes": 7}, False)])
def test_a_checkpoint_for_another_size_says_so(given: dict[str, int], advised: bool, tmp_path: Path) -> None:
    torch.save(timm.create_model("test_vit", pretrained=False, **given).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"--model-args \(num_classes, in_chans") as caught:
        load_timm("test_vit", checkpoint=tmp_path / "w.pth")
    assert str(caught.value).endswith("img_size) or --input-size") == advised
    if advised:  # as it says
        load_timm("test_vit", checkpoint=tmp_path / "w.pth", pretrained_cfg={"input_size": [3, 96, 96]})


@pytest.mark.parametrize("zipped", [True, False])
def test_an_average_is_told_of_where_there_are_other_weights(
    zipped: bool, tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    def average(content: object) -> str | None:
        torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
        return average_in(tmp_path / "w.pth")

    assert average(_wrap_average(weights)) == "state_dict_ema"
    assert average({"model": weights, "model_ema": weights}) == "model_ema"
    assert average({"state_dict_ema": weights}) is None
    assert average({"state_dict": weights, "model": weights}) is None
    assert average(weights) is None
    (tmp_path / "w.pth").write_bytes(b"no weights")
    assert average_in(tmp_path / "w.pth") is None
    assert average_in(tmp_path / "none.pth") is None


def test_a_wholly_different_checkpoint_is_refused_in_a_line_that_one_can_read(
    tmp_path: Path, weights: dict[str, Tensor]
) -> None:
    torch.save({f"k{i}": torch.ones(1) for i in range(50)}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="50 unexpected: k0, k1, k2, k3, k4 and 45 more; expected the same") as caught:
        load_timm("test_resnet", checkpoint=tmp_path / "w.pth")
    assert len(str(caught.value)) < 600 + len(str(tmp_path))
    torch.save({name: value * float("nan") for name, value in weights.items()}, tmp_path / "w.pth")
    with pytest.raises(NonFiniteError, match=r" and \d+ more; expected finite"):
        load_timm("test_resnet", checkpoint=tmp_path / "w.pth", model_args=SMALL)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_named(bad: float, tmp_path: Path, weights: dict[str, Tensor]) -> None:
    weights["fc.bias"][3] = bad
    weights["bn1.running_var"][0] = bad
    torch.save(weights, tmp_path / "w.pth")
    with pytest.raises(NonFiniteError, match=r"NaN or infinity in bn1\.running_var, fc\.bias; expected finite"):
        load_timm("test_resnet", checkpoint=tmp_path / "w.pth", model_args=SMALL)


def test_a_pickle_that_runs_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    torch.save({"state_dict": {"a": torch.ones(1)}, "extra": Runs(f"touch {target}")}, tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"asks to load \w+\.system; expected tensors only"):
        read_weights(tmp_path / "w.pth")
    assert not target.exists()


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
    with pytest.raises(ModelError, match=r"asks to load torch\.nn\.modules\.linear\.Linear"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("keep", [0, 7, 300, 0.5], ids=["empty", "head", "header", "half"])
def test_truncated_files_are_refused(suffix: str, keep: float, tmp_path: Path, weights: dict[str, Tensor]) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".pth":
        torch.save(weights, path)
    else:
        save_file(weights, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if 0 < keep < 1 else int(keep)])
    with pytest.raises(ModelError, match=r"corrupt or cut short .*copy it again"):
        read_weights(path)


def test_noise_is_refused(tmp_path: Path) -> None:
    for name in ("w.pth", "w.safetensors"):
        (tmp_path / name).write_bytes(b"hello world, this is no checkpoint")
        with pytest.raises(ModelError, match="corrupt or cut short"):
            read_weights(tmp_path / name)


def test_missing_and_oddly_named_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="which is no file"):
        read_weights(tmp_path / "absent.pth")
    with pytest.raises(ModelError, match="which is no file"):
        read_weights(tmp_path)
    (tmp_path / "w.npz").write_bytes(b"x")
    with pytest.raises(ModelError, match=r"expected a name that ends in \.safetensors, \.pth"):
        read_weights(tmp_path / "w.npz")


@pytest.mark.parametrize("content", [{}, {"epoch": 3}, [torch.ones(1)], torch.ones(2), {"state_dict": {}}])
def test_files_without_named_tensors_are_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ModelError, match="holds no mapping of names to tensors"):
        read_weights(tmp_path / "w.pth")


@pytest.mark.slow
def test_real_pretrained_weights_load(assets: Path) -> None:
    path = assets / "efficientnet_lite0.safetensors"
    model, architecture = load_timm("tf_efficientnet_lite0", checkpoint=path)
    recognised = architecture_of(model)
    assert sum(p.numel() for p in model.parameters()) == 4_652_008
    assert recognised is not None
    assert recognised.name.startswith("tf_efficientnet_lite0")
    assert architecture.args == {}


def test_a_head_that_is_drawn_is_told_of(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    cfg = {"input_size": [1, 40, 40], "num_classes": 10, "first_conv": "conv1.0", "classifier": "fc"}
    name = _local(tmp_path / "model", weights, pretrained_cfg=cfg)
    with pytest.warns(UserWarning, match="of 10 classes, the model has 3; its classifier is drawn at random"):
        model, _ = load_timm(name, model_args={"num_classes": 3})
    assert model.num_classes == 3
    load_timm(name, model_args={"num_classes": 3}, pretrained=False)  # all of it is drawn, as was asked for
