"""A zoo of one held-out teacher, and its students."""

from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.protocol import noise, students
from benchmarks.protocol.budgets import Cell
from benchmarks.protocol.methods import (
    Hypernetworks,
)
from benchmarks.protocol.students import Starts
from benchmarks.protocol.subject import Subject, open_subject, read_entries
from hypercompress.architecture import load_timm
from hypercompress.generator import HypernetConfig, Hypernetwork, save_hypernetwork
from hypercompress.specs import Unit
from hypercompress.student import Student
from hypercompress.synthetic.inversion import synthesize
from tests.benchmarks.heldout.sizes import SIZES


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One held-out teacher, one that is not, without its files; and a hypernetwork that says something."""
    place = tmp_path_factory.mktemp("zoo")
    torch.manual_seed(0)
    model, architecture = load_timm(
        "test_resnet",
        model_args={"in_chans": 1, "num_classes": 10},
        pretrained=False,
        pretrained_cfg={"input_size": [1, 28, 28], "mean": [0.286], "std": [0.353], "crop_pct": 1.0},
    )
    for parameter in model.parameters():  # norms that begin at zero would hide their branches
        parameter.data += 0.05 * torch.randn(parameter.shape)
    Student(model, architecture).save_pretrained(place / "net")
    lines = ["name,family,data,split", "net,test_resnet,fashion_mnist_mini,heldout", "no,other,digits,validation"]
    (place / "zoo.csv").write_text("\n".join(lines) + "\n")
    network = Hypernetwork(HypernetConfig(width=16, depth=1, heads=2))
    for parameter in network.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape)
    save_hypernetwork(network, place / "hypernet")
    return place


@pytest.fixture(scope="module")
def subject(zoo: Path) -> Subject:
    return open_subject(read_entries(zoo, "")[0], SIZES)


@pytest.fixture
def starts(subject: Subject, zoo: Path, monkeypatch: pytest.MonkeyPatch) -> Starts:
    monkeypatch.setattr(students, "PRUNING_STEPS", 8)
    monkeypatch.setattr(noise, "synthesize", partial(synthesize, steps=4))
    return Starts(subject, Hypernetworks(zoo / "hypernet"), 0, [Cell(Unit.PARAMS, 0.8, 0.4)])
