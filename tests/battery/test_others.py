"""The same promises for models that timm did not make: torchvision's classifiers, and a text encoder from torch alone.

They go through `compress` with an example, and come back from disk by way of a skeleton.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models as zoo
from torch import Tensor, nn

from hypercompress.compress import compress
from hypercompress.inspection import inspect
from hypercompress.packed.unpacking import unpack
from hypercompress.specs import Budget, Status
from tests.battery.skeletons import Maker, check, images

# The smallest model of each family that costs seconds, and the side of its images in pixels.
QUICK: Mapping[str, int] = {
    "densenet121": 64,
    "efficientnet_b0": 64,
    "mnasnet0_5": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "regnet_y_400mf": 64,
    "shufflenet_v2_x0_5": 64,
    "squeezenet1_1": 64,
}
# Those that cost minutes: each commit sees their classes with fewer and narrower layers.
LARGE: Mapping[str, int] = {
    "alexnet": 64,
    "convnext_tiny": 64,
    "googlenet": 96,
    "inception_v3": 96,
    "maxvit_t": 224,
    "resnet18": 64,
    "swin_t": 64,
    "vgg11": 64,
    "vit_b_16": 224,
}
SETTINGS = [zoo.convnext.CNBlockConfig(32, 64, 1), zoo.convnext.CNBlockConfig(64, None, 1)]
SMALL: Mapping[str, Maker] = {
    "ConvNeXt": lambda: zoo.ConvNeXt(SETTINGS, num_classes=10),
    "MaxVit": lambda: zoo.MaxVit((64, 64), 32, 2, [32, 64], [1, 1], 16, 0.0, num_classes=10),
    "ResNet": lambda: zoo.ResNet(zoo.resnet.Bottleneck, [1, 1, 1, 1], num_classes=10, width_per_group=16),
    "SwinTransformer": lambda: zoo.SwinTransformer([4, 4], 32, [2, 2], [2, 2], [4, 4], num_classes=10),
    "VisionTransformer": lambda: zoo.VisionTransformer(64, 16, 2, 2, 64, 128, num_classes=10),
}


def torchvision_model(name: str) -> nn.Module:
    # These two warn that their own slow initialisation will not be the default for ever.
    extra = {"init_weights": False} if name in {"googlenet", "inception_v3"} else {}
    model: nn.Module = zoo.get_model(name, weights=None, num_classes=10, **extra)
    return model


def test_every_family_of_torchvision_is_here() -> None:
    families = {zoo.get_model_builder(name).__module__ for name in zoo.list_models(module=zoo)}
    assert {zoo.get_model_builder(name).__module__ for name in (*QUICK, *LARGE)} == families


@pytest.mark.slow
def test_of_every_family_of_torchvision_it_is_the_smallest() -> None:
    smallest: dict[str, tuple[int, str]] = {}
    for name in zoo.list_models(module=zoo):
        # torchvision computes the widths of a RegNet by tensors, and reads them.
        with torch.device("cpu" if name.startswith("regnet") else "meta"):
            size = sum(p.numel() for p in torchvision_model(name).parameters())
        family = zoo.get_model_builder(name).__module__
        smallest[family] = min((size, name), smallest.get(family, (size, name)))
    assert {name for _, name in smallest.values()} == {*QUICK, *LARGE}


@pytest.mark.parametrize("name", QUICK)
def test_torchvision_classifier(name: str, tmp_path: Path) -> None:
    check(lambda: torchvision_model(name), images(QUICK[name]), tmp_path, budget=Budget(params=0.8), generator="svd")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", LARGE)
def test_large_torchvision_classifier(name: str, tmp_path: Path) -> None:
    check(lambda: torchvision_model(name), images(LARGE[name]), tmp_path, budget=Budget(params=0.8), generator="svd")


@pytest.mark.parametrize("name", SMALL)
def test_small_model_of_a_torchvision_class(name: str, tmp_path: Path) -> None:
    data = list(images(64).repeat(3, 1, 1, 1).split(2))
    check(SMALL[name], images(64), tmp_path, budget=Budget(params=0.8), data=data, generator="kfac")


class TextClassifier(nn.Module):
    """Token ids [b, t] and a mask (true: a token) in, logits [b, 5] out."""

    def __init__(self, *, nested: bool, norm_first: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, 32, padding_idx=0)
        self.positions = nn.Parameter(0.1 * torch.randn(12, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=norm_first)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)
        self.head = nn.Linear(32, 5)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions[: ids.shape[1]]
        x = self.encoder(x, src_key_padding_mask=~mask)
        weight = mask[..., None].to(x.dtype)
        logits: Tensor = self.head((x * weight).sum(1) / weight.sum(1))
        return logits


VARIANTS = [{"nested": True, "norm_first": False}, {"nested": False, "norm_first": False}]
VARIANTS.append({"nested": False, "norm_first": True})
# torch packs padded batches into nested tensors in evaluation mode, and says at the first one that they may change.
pytestmark = pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")


def texts(seed: int = 0) -> dict[str, Tensor]:
    """A batch of dicts: six texts, three of them shorter."""
    ids = torch.randint(1, 50, (6, 12), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(12)[None] < torch.tensor([12, 12, 12, 9, 7, 4])[:, None]
    return {"ids": ids * mask, "mask": mask}


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(k for k in v if v[k]) or "plain")
def test_text_encoder_lists_what_it_cannot_factor(variant: dict[str, bool]) -> None:
    teacher = TextClassifier(**variant).eval()
    spec = inspect(unpack(teacher), texts())
    factored = {layer.name: layer.calls for layer in spec.candidates}
    names = ["linear1", "linear2", *(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out"))]
    layers = [f"encoder.layers.{index}.{name}" for index in (0, 1) for name in names]
    assert factored == dict.fromkeys([*layers, "head"], 1)
    packed = inspect(teacher, texts())
    assert (packed.params, packed.macs) == (spec.params, spec.macs)
    unsupported = [{row.kind for row in s.layers if row.status is Status.UNSUPPORTED} for s in (spec, packed)]
    assert unsupported[0] == {"Embedding", "TextClassifier"}
    assert unsupported[1] == {*unsupported[0], "MultiheadAttention", "linear"}


@pytest.mark.parametrize("generator", ["svd", "kfac", "hypernet"])
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(k for k in v if v[k]) or "plain")
def test_text_encoder_is_right_whichever_path_torch_takes(
    variant: dict[str, bool], generator: str, tmp_path: Path
) -> None:
    data = None if generator == "svd" else [texts(seed) for seed in range(1, 5)]
    options: dict[str, Any] = {"budget": Budget(params=0.85), "data": data, "generator": generator}
    _, student = check(lambda: TextClassifier(**variant), texts(), tmp_path, **options)
    with torch.no_grad():
        fused = student(**texts())  # in evaluation mode without gradients torch may run a layer as one kernel
        dense = student.to_dense()(**texts())
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            stepwise = student(**texts())
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    for other in (dense, stepwise, student(**texts()).detach()):
        torch.testing.assert_close(fused, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(k for k in v if v[k]) or "plain")
def test_text_padding_and_batch_mates_change_nothing(variant: dict[str, bool]) -> None:
    torch.manual_seed(0)
    student = compress(TextClassifier(**variant).eval(), Budget(params=0.85), generator="svd", example=texts())
    with torch.no_grad():
        together, alone = student(**texts()), student(**{name: value[4:5, :7] for name, value in texts().items()})
    torch.testing.assert_close(together[4:5], alone, rtol=1e-4, atol=1e-5)
