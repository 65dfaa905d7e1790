"""The same promises for models of other libraries, where these are installed: `pip install -e '.[libraries]'`.

Small ones, with random weights: transformers (outputs with logits), segmentation_models_pytorch (maps), open_clip (an
encoder in which attention is packed), MONAI (volumes).
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypercompress.export import export
from hypercompress.specs import Budget
from tests.battery.skeletons import check, images

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # what others warn of is theirs

VIT = {"image_size": 64, "patch_size": 16, "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3}
DEPTHS = {"depths": [1, 1, 1, 1], "num_labels": 10}
WIDTHS = {"hidden_sizes": [32, 64, 96, 128]}
SWIN = {"image_size": 64, "embed_dim": 48, "window_size": 4, "depths": [1, 1, 2], "num_heads": [2, 4, 4]}
TRANSFORMERS: Mapping[str, dict[str, Any]] = {
    "ViTForImageClassification": VIT | {"intermediate_size": 192, "num_labels": 10},
    "DeiTForImageClassification": VIT | {"intermediate_size": 192, "num_labels": 10},
    "BeitForImageClassification": VIT | {"intermediate_size": 192, "num_labels": 10},
    "Dinov2ForImageClassification": VIT | {"num_labels": 10},
    "SwinForImageClassification": SWIN,
    "ConvNextForImageClassification": WIDTHS | DEPTHS,
    "ConvNextV2ForImageClassification": WIDTHS | DEPTHS,
    "ResNetForImageClassification": {"embedding_size": 32} | WIDTHS | DEPTHS,
    "SegformerForSemanticSegmentation": {"hidden_sizes": [16, 32, 64, 96], "decoder_hidden_size": 64} | DEPTHS,
    "YolosForObjectDetection": VIT | {"image_size": [64, 64], "intermediate_size": 192, "num_detection_tokens": 10},
}
CLIP = {"layers": 2, "width": 96, "head_width": 32, "patch_size": 16, "image_size": 64}


def transformer(name: str) -> nn.Module:
    library = pytest.importorskip("transformers", reason="transformers is not installed (extra: libraries)")
    config = getattr(library, name.partition("For")[0] + "Config")(**TRANSFORMERS[name])
    model: nn.Module = getattr(library, name)(config)
    return model


def of(library: str, path: str, **options: Any) -> Callable[[], nn.Module]:
    """A function that makes the class at ``path`` of a library, if that is installed."""

    def make() -> nn.Module:
        pytest.importorskip(library, reason=f"{library} is not installed (extra: libraries)")
        module, _, name = path.rpartition(".")
        model: nn.Module = getattr(import_module(module), name)(**options)
        return model

    return make


class Picked(nn.Module):
    """The first output of a model."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        first: Tensor = self.model(x)[0]
        return first


def clip() -> nn.Module:
    library = pytest.importorskip("open_clip", reason="open_clip is not installed (extra: libraries)")
    text = library.CLIPTextCfg(context_length=16, vocab_size=100, width=64, heads=2, layers=1)
    visual: nn.Module = library.CLIP(64, library.CLIPVisionCfg(**CLIP), text).visual
    return visual


def monai_vit() -> nn.Module:
    sizes = {"in_channels": 3, "img_size": (64, 64), "patch_size": (16, 16), "hidden_size": 96, "mlp_dim": 192}
    make = of(
        "monai", "monai.networks.nets.ViT", num_layers=2, num_heads=3, classification=True, spatial_dims=2, **sizes
    )
    return Picked(make())


SMP = "segmentation_models_pytorch"
PLAIN = {"encoder_weights": None, "classes": 3}
VOLUME = torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1))
OTHERS: Mapping[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "smp-Unet": (of(SMP, f"{SMP}.Unet", encoder_name="resnet18", **PLAIN), images(64)),
    "smp-DeepLabV3Plus": (of(SMP, f"{SMP}.DeepLabV3Plus", encoder_name="mobilenet_v2", **PLAIN), images(64)),
    "smp-FPN": (of(SMP, f"{SMP}.FPN", encoder_name="tu-mobilenetv3_small_050", **PLAIN), images(64)),
    "open_clip-visual": (clip, images(64)),
    "monai-DenseNet121": (
        of("monai", "monai.networks.nets.DenseNet121", spatial_dims=2, in_channels=3, out_channels=5),
        images(64),
    ),
    "monai-ViT": (monai_vit, images(64)),
    "monai-UNet": (
        of(
            "monai",
            "monai.networks.nets.UNet",
            spatial_dims=3,
            in_channels=1,
            out_channels=2,
            channels=(8, 16, 32),
            strides=(2, 2),
        ),
        VOLUME,
    ),
}


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name: str, tmp_path: Path) -> None:
    data = list(images(64).repeat(3, 1, 1, 1).split(2))
    check(lambda: transformer(name), images(64), tmp_path, budget=Budget(params=0.75), data=data, generator="kfac")


@pytest.mark.parametrize("name", OTHERS)
def test_other_libraries(name: str, tmp_path: Path) -> None:
    make, batch = OTHERS[name]
    data = list(batch.repeat(3, *[1] * (batch.ndim - 1)).split(2))
    _, student = check(make, batch, tmp_path, budget=Budget(params=0.75), data=data, generator="kfac")
    size = tuple(batch.shape[1:])
    assert export(student, tmp_path / "student.onnx", input_size=size).max_difference < 1e-3
