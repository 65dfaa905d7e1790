"""From images to tensors: sizes, channels, normalisation, and what is refused."""

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import hypercompress
from hypercompress import Budget, compress, from_pretrained
from hypercompress.architecture import architecture_of
from hypercompress.architecture.record import with_preparation
from hypercompress.data import Preprocess
from hypercompress.errors import DataError

GREY = Preprocess((1, 28, 28), (0.5,), (0.25,))
RGB = Preprocess((3, 20, 30), (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))


def noise(*shape: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def test_an_image_of_the_input_size_is_only_normalised() -> None:
    image = noise(28, 28)
    expected = (torch.tensor(np.asarray(image))[None] / 255 - 0.5) / 0.25
    torch.testing.assert_close(GREY.transform()(image), expected)


def test_each_channel_has_its_own_mean_and_std() -> None:
    image = noise(20, 30, 3)
    plain = torch.tensor(np.asarray(image)).permute(2, 0, 1) / 255
    expected = (plain - torch.tensor(RGB.mean).view(3, 1, 1)) / torch.tensor(RGB.std).view(3, 1, 1)
    torch.testing.assert_close(RGB.transform()(image), expected)


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB"])
@pytest.mark.parametrize("preprocess", [GREY, RGB], ids=["grey", "rgb"])
def test_every_image_mode_takes_the_models_shape(preprocess: Preprocess, mode: str, augment: bool) -> None:
    image = Image.new("LAB", (53, 37)) if mode == "LAB" else noise(37, 53, 3).convert(mode)
    tensor = preprocess.transform(augment)(image)
    assert tensor.shape == preprocess.input_size
    assert tensor.dtype == torch.float32


def test_a_palette_with_transparency_is_read_without_a_warning() -> None:
    image = noise(28, 28, 3).convert("P")
    image.info["transparency"] = bytes(range(256))
    assert GREY.transform()(image).shape == (1, 28, 28)


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    deep = np.linspace(0, 65535, 28 * 28).reshape(28, 28).astype(np.uint16)
    expected = GREY.transform()(Image.fromarray((deep >> 8).astype(np.uint8)))
    torch.testing.assert_close(GREY.transform()(Image.fromarray(deep)), expected)


def test_a_crop_keeps_the_middle() -> None:
    pixels = np.zeros((40, 40), dtype=np.uint8)
    pixels[10:30, 10:30] = 255
    tensor = Preprocess((1, 20, 20), (0.0,), (1.0,), crop_pct=0.5).transform()(Image.fromarray(pixels))
    torch.testing.assert_close(tensor, torch.ones(1, 20, 20))


def test_squash_keeps_the_whole_image() -> None:
    pixels = np.repeat(np.array([[0, 255]], dtype=np.uint8), 40, axis=1).repeat(20, axis=0)  # wide: black then white
    tensor = Preprocess((1, 20, 20), (0.0,), (1.0,), crop_mode="squash").transform()(Image.fromarray(pixels))
    assert float(tensor.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(tensor[0, :, 0].max()) == 0.0
    assert float(tensor[0, :, -1].min()) == 1.0


def test_augmentation_follows_the_seed_and_evaluation_ignores_it() -> None:
    image, crops = noise(40, 40), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        random.seed(seed)
        crops.append(GREY.transform(augment=True)(image))
    assert torch.equal(crops[0], crops[1])
    assert not torch.equal(crops[0], crops[2])
    assert torch.equal(GREY.transform()(image), GREY.transform()(image))


def test_a_transform_survives_a_trip_to_a_worker() -> None:
    image = noise(40, 40)
    assert torch.equal(pickle.loads(pickle.dumps(GREY.transform()))(image), GREY.transform()(image))  # noqa: S301


def test_the_models_own_configuration_is_the_default() -> None:
    model = timm.create_model("test_vit", pretrained=False)
    cfg = model.pretrained_cfg
    made = Preprocess.of(model)
    assert made.input_size == cfg["input_size"]
    assert (made.mean, made.std) == (cfg["mean"], cfg["std"])
    assert (made.interpolation, made.crop_pct, made.crop_mode) == ("bicubic", 0.95, "center")


def test_timms_own_evaluation_transform_agrees() -> None:
    model, image = timm.create_model("test_resnet", pretrained=False), noise(200, 180, 3)
    theirs = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
    torch.testing.assert_close(Preprocess.of(model).transform()(image), theirs(image))


def test_lists_from_json_are_accepted() -> None:
    model = timm.create_model("test_resnet", pretrained=False)
    model.pretrained_cfg |= {"input_size": [3, 64, 64], "mean": [0, 0, 0], "std": [1, 1, 1]}
    assert Preprocess.of(model) == Preprocess((3, 64, 64), (0.0,) * 3, (1.0,) * 3, "bilinear", 0.95)


def test_one_value_serves_all_channels() -> None:
    made = Preprocess.of(timm.create_model("test_resnet", pretrained=False), mean=[0.4], std=[0.3])
    assert (made.mean, made.std) == ((0.4,) * 3, (0.3,) * 3)


def test_another_size_turns_the_pretrained_crop_off() -> None:
    model = timm.create_model("test_resnet", pretrained=False)
    assert Preprocess.of(model, input_size=[3, 160, 160]).crop_pct == 0.95
    assert Preprocess.of(model, input_size=[3, 64, 64]).crop_pct == 1.0


def test_a_grey_model_with_three_means_says_what_to_pass() -> None:
    model = timm.create_model("test_resnet", pretrained=False, in_chans=1)
    with pytest.raises(DataError, match=r"3 mean values .* images of 1 channels.*pass --mean V; also .*pass --std V$"):
        Preprocess.of(model)
    assert Preprocess.of(model, mean=[0.5], std=[0.5]).input_size == (1, 160, 160)


def test_channels_that_differ_from_the_model_say_what_to_pass() -> None:
    model = timm.create_model("test_resnet", pretrained=False)
    with pytest.raises(DataError, match=r"1 channels for a model of 3; .*pass --input-size 3 28 28"):
        Preprocess.of(model, input_size=[1, 28, 28], mean=[0.5], std=[0.5])


def test_a_short_input_size_is_refused() -> None:
    with pytest.raises(DataError, match=r"received input size \[28, 28\]; expected channels, height and width"):
        Preprocess.of(timm.create_model("test_resnet", pretrained=False), input_size=[28, 28])


def test_a_plain_module_needs_all_three() -> None:
    with pytest.raises(DataError, match=r"pass --mean --std$"):
        Preprocess.of(nn.Linear(2, 2), input_size=[3, 8, 8])
    made = Preprocess.of(nn.Linear(2, 2), input_size=[3, 8, 8], mean=[0.5], std=[0.5])
    assert made == Preprocess((3, 8, 8), (0.5,) * 3, (0.5,) * 3)


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"input_size": (4, 8, 8), "mean": (0.5,) * 4, "std": (0.5,) * 4}, "expected 1 .grey. or 3 .RGB. channels"),
    ({"input_size": (1, 0, 8)}, "sides of 1 pixel or more"),
    ({"mean": (0.5, 0.5)}, "2 mean values .* pass --mean V"),
    ({"std": (0.0,)}, r"received std \[0.0\]; expected finite numbers above 0"),
    ({"mean": (float("nan"),)}, r"received mean \[nan\]; expected finite numbers"),
    ({"interpolation": "cubic"}, "received interpolation 'cubic'; expected one of nearest"),
    ({"crop_pct": 0.0}, "received crop_pct 0; expected a share"),
    ({"crop_mode": "middle"}, "received crop_mode 'middle'; expected center, squash or border"),
]


@pytest.mark.parametrize(("change", "message"), FAULTS, ids=[str(next(iter(c))) for c, _ in FAULTS])
def test_impossible_values_are_refused(change: dict[str, Any], message: str) -> None:
    values: dict[str, Any] = {"input_size": (1, 8, 8), "mean": (0.5,), "std": (0.5,)}
    with pytest.raises(DataError, match=message):
        Preprocess(**(values | change))


def test_all_faults_are_reported_at_once() -> None:
    with pytest.raises(DataError) as caught:
        Preprocess((1, 8, 8), (0.5, 0.5), (0.0,), "cubic", 2.0, "middle")
    assert all(word in str(caught.value) for word in ("mean", "std", "interpolation", "crop_pct", "crop_mode"))


@pytest.mark.parametrize("size", [None, (4, 32, 32), (3, 32, 32)])
def test_models_of_other_channels_than_files_have_are_measured_in_python(size: tuple[int, ...] | None) -> None:
    """Nor is one of four taken for colour; options were advised that are refused."""
    model = timm.create_model("test_resnet", in_chans=4)
    with pytest.raises(DataError, match=r"images of 4 channels; expected 1 \(grey\) or 3 \(RGB\), .* in Python: compr"):
        Preprocess.of(model, size)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_student_has_the_channels_of_its_factored_first_convolution(channels: int) -> None:
    """timm's own notes say three."""
    teacher = timm.create_model("test_vit", in_chans=channels, num_classes=5)
    example = torch.randn(2, channels, 160, 160)
    student = hypercompress.compress(teacher, Budget(params=0.5), example=example, generator="svd")
    assert "patch_embed.proj" in student.ranks
    for model in (teacher, student):
        assert Preprocess.of(model, mean=[0.5], std=[0.5]).input_size == (channels, 160, 160)
    with pytest.raises(DataError, match=f"channels for a model of {channels}; expected equal channels"):
        Preprocess.of(student, input_size=(4 - channels, 160, 160), mean=[0.5], std=[0.5])


@pytest.mark.parametrize("name", ["test_vit", "test_vit2"])
@pytest.mark.parametrize("size", [64, (64, 96)])
def test_a_model_built_for_another_size_says_its_own(name: str, size: int | tuple[int, int], tmp_path: Path) -> None:
    """timm notes that of the pretrained weights, whatever it builds."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, img_size=size).eval()
    wanted = Preprocess.of(model)
    assert wanted.input_size == (3, 64, 64 if size == 64 else 96)
    assert model(torch.zeros(1, *wanted.input_size)).shape == (1, 10)
    student = compress(model, Budget(params=0.6), generator="svd")
    student.save_pretrained(tmp_path / "s")
    assert Preprocess.of(student) == Preprocess.of(from_pretrained(tmp_path / "s")) == wanted


def test_a_size_that_was_written_down_stays() -> None:
    """Of a model that takes other sizes than it was built for."""
    model = timm.create_model("test_vit", num_classes=10, img_size=64)
    model, _ = with_preparation(model, None, Preprocess.of(model, (3, 96, 96)))
    assert Preprocess.of(model).input_size == (3, 96, 96)


def test_the_size_of_the_pretrained_weights_stays_where_it_was_written_down(tmp_path: Path) -> None:
    """A student calibrated at that size was read back as one of the size that it was built for."""
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=64, dynamic_img_size=True, depth=1)
    assert Preprocess.of(model).input_size == (3, 64, 64)
    known = architecture_of(model)
    model, known = with_preparation(model, known, Preprocess.of(model, (3, 224, 224)))
    student = compress(model, Budget(params=0.6), generator="svd", architecture=known)
    student.save_pretrained(tmp_path / "s")
    for some in (model, student, from_pretrained(tmp_path / "s"), student.to_dense()):
        assert Preprocess.of(some).input_size == (3, 224, 224)
