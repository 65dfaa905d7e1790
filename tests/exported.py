"""Students that are exported, and their files run elsewhere."""

from pathlib import Path

import onnxruntime
import timm
import torch
from torch import Tensor, nn

import hypercompress
from benchmarks.shared import families
from hypercompress import Budget, Student


class MLP(nn.Module):
    """A model of the user's own class, without a ``pretrained_cfg``."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(32, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 7))

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.layers(x)
        return output


def student_of(name: str) -> Student:
    torch.manual_seed(0)
    model = families.alive(timm.create_model(name, pretrained=False, num_classes=10))
    return hypercompress.compress(model, Budget(params=0.6), generator="svd")


def mlp_student(share: float = 0.3) -> Student:
    torch.manual_seed(0)
    return hypercompress.compress(MLP(), Budget(params=share), generator="svd", example=torch.randn(2, 32))


def run_elsewhere(file: Path, kind: str, x: Tensor) -> Tensor:
    """The file's outputs by the shortest way that a deployer would take."""
    if kind == "onnx":
        session = onnxruntime.InferenceSession(str(file))
        return torch.from_numpy(session.run(None, {"input": x.numpy()})[0])
    output: Tensor = torch.export.load(str(file)).module()(x)
    return output
