"""A small network on disk, a student of it and a hypernetwork."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from hypercompress.cli import main
from hypercompress.generator import HypernetConfig, Hypernetwork, save_hypernetwork
from tests.cli.words import ARGS, CALIBRATE


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a small network whose every branch is alive (timm starts some at zero)."""
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10, in_chans=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
        for _ in range(30):  # moments that fit the weights
            logits = model.train()(torch.randn(16, 1, 32, 32))
        model.fc.weight.mul_(2 / logits.std())
    path = tmp_path_factory.mktemp("teacher") / "weights.safetensors"
    save_file(model.state_dict(), path)
    return path


@pytest.fixture(scope="session")
def teacher(weights: Path) -> tuple[object, ...]:
    """The words that name the teacher."""
    return ("test_resnet", "--checkpoint", weights, "--model-args", ARGS)


@pytest.fixture(scope="session")
def student(teacher: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("students") / "student"
    name, *rest = teacher
    words = ["generate", name, folder, *rest, "--params", 0.3, "--generator", "kfac", *CALIBRATE]
    assert main([str(word) for word in words]) == 0
    return folder


@pytest.fixture(scope="session")
def hypernet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hypernetwork as it is before training."""
    folder = tmp_path_factory.mktemp("generator") / "mine"
    save_hypernetwork(Hypernetwork(HypernetConfig()), folder)
    return folder
