"""What student and teacher can be compared on, against modules whose outputs are known."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from hypercompress import Budget, compress
from hypercompress.architecture import load_timm
from hypercompress.errors import ModelError
from hypercompress.losses import watching
from hypercompress.student import Student
from lightning_modules.data import ImageDataModule
from lightning_modules.distillation import Distillation
from lightning_modules.losses import Losses
from lightning_modules.matching import comparable, probed
from lightning_modules.source import TeacherSource

Folders = tuple[Path, Path]
CFG = {"input_size": [1, 32, 32], "mean": [0.286], "std": [0.353]}
SHRUNK: dict[str, dict[str, Any]] = {
    "pit_ti_224": {"img_size": 32, "base_dims": [8, 8, 8], "depth": [1, 1, 1], "heads": [1, 2, 4]},
    "coat_tiny": {
        "img_size": 32,
        "embed_dims": [16, 16, 16, 16],
        "serial_depths": [1, 1, 1, 1],
        "parallel_depth": 1,
    },
}


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


class Net(nn.Module):
    def __init__(self, width: int, classes: int = 5) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(1, 4, 3), nn.Conv2d(4, width, 1)
        self.pair, self.idle, self.drop = Pair(), nn.Identity(), nn.Dropout(0.9)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        both = self.pair(self.drop(self.wide(self.stem(x))))
        logits: Tensor = self.head(both[0].mean((2, 3)))
        return logits


def both(student: Net, teacher: Net) -> tuple[tuple[str, ...], dict[str, str]]:
    names = ("stem", "wide", "pair", "idle")
    return comparable(*(probed(net, names, (1, 8, 9), "student") for net in (student, teacher)))


def test_single_tensors_of_one_shape_are_kept_and_others_are_named() -> None:
    kept, wrong = both(Net(6).train(), Net(7))
    assert kept == ("stem",)
    assert wrong == {
        "wide": "[6, 6, 7] in the student, [7, 6, 7] in the teacher",
        "pair": "returns no single tensor",
        "idle": "is not called",
    }
    assert both(Net(6), Net(6))[0] == ("stem", "wide")


def test_a_probe_leaves_no_trace() -> None:
    net = Net(6).train()
    state = torch.get_rng_state()
    probed(net, ("stem",), (1, 8, 8), "student")
    assert net.training
    assert not net.stem._forward_hooks
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(torch.get_rng_state(), state)


def test_logits_of_other_shapes() -> None:
    with pytest.raises(
        ModelError, match=r"outputs of \[5\] from the student and \[7\] from the teacher; expected equal"
    ):
        both(Net(6), Net(6, classes=7))


def test_images_that_a_network_does_not_take() -> None:
    with pytest.raises(ModelError, match="received images of 3 x 8 x 8 that the teacher does not take"):
        probed(Net(6), (), (3, 8, 8), "teacher")


def test_watching_says_what_it_cannot_keep() -> None:
    net = Net(6)
    with (
        pytest.raises(ModelError, match="received tuple from a watched Pair; expected one tensor"),
        watching(net, ["pair"]),
    ):
        net(torch.zeros(2, 1, 8, 8))


@pytest.mark.parametrize("name", SHRUNK)
def test_models_whose_feature_maps_are_no_tensors_are_distilled(
    name: str, trainer: Callable[..., Trainer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    arguments = {"in_chans": 1, "num_classes": 10, **SHRUNK[name]}
    teacher, architecture = load_timm(name, model_args=arguments, pretrained_cfg=CFG, pretrained=False)
    Student(teacher, architecture).save_pretrained(tmp_path / "teacher")
    student = compress(teacher, Budget(params=0.8), generator="svd", architecture=architecture)
    student.save_pretrained(tmp_path / "student")
    system = Distillation(tmp_path / "student", TeacherSource(str(tmp_path / "teacher")))
    data = ImageDataModule("fashion_mnist_mini", batch_size=8, limit=32)
    with caplog.at_level("INFO"):
        trainer(max_steps=2, limit_val_batches=0).fit(system, data)
    assert "feature loss leaves out: " in caplog.text
    assert system.watched == ()
    alone = Distillation(tmp_path / "student", TeacherSource(str(tmp_path / "teacher")), Losses(0.0, features=1.0))
    with pytest.raises(ModelError, match="received a weight on features alone for a model whose feature maps all"):
        trainer(max_steps=2, limit_val_batches=0).fit(alone, data)


@pytest.mark.parametrize("classes", [10, 7])
def test_a_teacher_of_another_width(
    classes: int, folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """The same names, other shapes: what is left is followed; other logits are refused before the first step."""
    arguments = {"in_chans": 1, "num_classes": classes, "channel_multiplier": 2.0}
    cfg = {**CFG, "input_size": [1, 28, 28]}
    teacher, architecture = load_timm("test_efficientnet", model_args=arguments, pretrained_cfg=cfg, pretrained=False)
    Student(teacher, architecture).save_pretrained(tmp_path / "teacher")
    system = Distillation(folders[1], TeacherSource(str(tmp_path / "teacher")))
    run = trainer(max_steps=2, limit_val_batches=0)
    data = ImageDataModule("fashion_mnist_mini", batch_size=8, limit=32)
    if classes == 10:
        run.fit(system, data)
        assert run.global_step == 2
        return
    with pytest.raises(ModelError, match=r"outputs of \[10\] from the student and \[7\] from the teacher"):
        run.fit(system, data)
    assert run.global_step == 0
