"""The families that exports are tried on, and a student of each."""

from typing import Any

import timm
import torch
from torch import nn

from hypercompress.compress import compress
from hypercompress.specs import Budget
from hypercompress.student import Student

FAMILIES: dict[str, dict[str, Any]] = {
    "coat_lite_tiny": {"img_size": 64},
    "convnext_atto": {},
    "densenet121": {},
    "dla46_c": {},
    "edgenext_xx_small": {},
    "efficientformer_l1": {},
    "efficientnet_lite0": {},
    "fastvit_t8": {},
    "ghostnet_050": {},
    "hgnetv2_b0": {},
    "inception_next_atto": {},
    "lcnet_050": {},
    "levit_128s": {},
    "mambaout_femto": {},
    "mixer_s32_224": {"img_size": 64},
    "mnasnet_small": {},
    "mobilenetv2_050": {},
    "mobilenetv3_small_050": {},
    "mobilevit_xxs": {},
    "mobilevitv2_050": {},
    "pit_ti_224": {"img_size": 64},
    "poolformer_s12": {},
    "regnetx_002": {},
    "regnety_002": {},
    "repvgg_a0": {},
    "resmlp_12_224": {"img_size": 64},
    "resnet18": {},
    "starnet_s1": {},
    "swin_tiny_patch4_window7_224": {},
    "test_maxvit": {},
    "test_vit_relpos": {},
    "vit_tiny_patch16_224": {"img_size": 64},
}  # timm name -> arguments
FIXED = {"efficientformer_l1", "levit_128s", "swin_tiny_patch4_window7_224", "test_maxvit", "test_vit_relpos"}
SIDE = 64  # pixels, of all that are not fixed to the size that timm says
SHARE = 0.7  # parameters of the student


def alive(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, every branch of it counting: timm starts some at zero, and equal tensors would be
    stored once.
    """
    generator = torch.Generator().manual_seed(1)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and (tensor.ndim == 1 or not tensor.any()):
            tensor.data += 0.1 * torch.rand(tensor.shape, generator=generator)
    return model.eval()


def student_of(name: str) -> tuple[Student, tuple[int, ...]]:
    """A student of a family, from random weights, and the shape of one input to try it on."""
    torch.manual_seed(0)
    model: Any = alive(timm.create_model(name, pretrained=False, num_classes=10, **FAMILIES[name]))
    channels, *sides = model.pretrained_cfg["input_size"]
    size = (channels, *sides) if name in FIXED else (channels, SIDE, SIDE)
    return compress(model, Budget(params=SHARE), generator="svd", example=torch.randn(2, *size)), size
