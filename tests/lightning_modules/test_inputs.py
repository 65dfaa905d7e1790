"""What a run leaves knows how its images were prepared, also where ``data.inputs`` says so and not the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from hypercompress import from_pretrained
from hypercompress.architecture import build, load_timm
from hypercompress.architecture.record import with_preparation
from hypercompress.data import Preprocess
from hypercompress.fidelity import accuracy
from lightning_modules import data as data_module
from lightning_modules.callbacks import SaveStudent
from lightning_modules.data import ImageDataModule, Inputs
from lightning_modules.distillation import Distillation
from lightning_modules.losses import Losses
from lightning_modules.optimization import Optimization
from lightning_modules.source import TeacherSource
from lightning_modules.teacher import Teacher
from tests.lightning_modules.conftest import MODEL, MODEL_ARGS, PRETRAINED_CFG

Folders = tuple[Path, Path]


@pytest.mark.filterwarnings("ignore:on validation images of")
@pytest.mark.parametrize("system", [Teacher, Distillation])
def test_the_folder_remembers_the_preparation_of_the_run(
    system: type[LightningModule], folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """As a student of hypercompress generate or transfer does: evaluated without options it is what was trained."""
    slow = Optimization("adamw", 1e-4, 0.0)
    if system is Teacher:
        made: LightningModule = Teacher(MODEL, MODEL_ARGS, PRETRAINED_CFG, optimization=slow)
    else:
        made = Distillation(folders[1], TeacherSource(str(folders[0])), Losses(features=0.0), slow)
    inputs = Inputs(input_size=(1, 24, 24), mean=(0.1,), std=(0.7,))
    data = ImageDataModule("fashion_mnist_mini", inputs=inputs, limit=64, val_limit=64, batch_size=32)
    trainer(max_steps=1, callbacks=[SaveStudent(tmp_path / "out")]).fit(made, data)
    saved = from_pretrained(tmp_path / "out")
    found = Preprocess.of(saved)
    assert (found.input_size, found.mean, found.std) == ((1, 24, 24), (0.1,), (0.7,))
    assert found == data.preprocess()
    again = ImageDataModule("fashion_mnist_mini", inputs=Inputs(like=str(tmp_path / "out")), val_limit=64)
    again.setup("validate")
    assert accuracy(saved.model, again.val_dataloader()) == accuracy(made.network.eval(), data.val_dataloader())


@pytest.mark.filterwarnings("ignore:on validation images of", "ignore:Checkpoint directory .* exists and is not empty")
def test_a_model_to_prepare_images_like_is_built_once_and_draws_nothing(
    trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each checkpoint says how the images are prepared; steps with dropout after it are those of a run without it."""
    built = list[str]()
    load = data_module.load_model

    def watched(name: str, **options: Any) -> Any:
        built.append(name)
        return load(name, **options)

    monkeypatch.setattr(data_module, "load_model", watched)
    ends = list[dict[str, torch.Tensor]]()
    for saving in ([], [ModelCheckpoint(tmp_path, every_n_train_steps=1)]):
        torch.manual_seed(0)
        system = Teacher(MODEL, {"num_classes": 10, "drop_rate": 0.5})
        inputs = Inputs("test_resnet", (3, 28, 28), (0.286,), (0.353,))
        data = ImageDataModule("fashion_mnist_mini", inputs=inputs, limit=64, val_limit=16, batch_size=16)
        options = {"max_steps": 3, "limit_val_batches": 0, "enable_checkpointing": bool(saving)}
        trainer(**options, callbacks=saving).fit(system, data)
        ends.append(system.network.state_dict())
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert built == ["test_resnet"] * 2
    before = torch.get_rng_state()
    inputs.preprocess()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_that_takes_images_of_any_size_is_built_as_it_was() -> None:
    """timm would build a vision transformer for the size that its description has."""
    args = {"in_chans": 1, "num_classes": 10, "dynamic_img_size": True}
    model, architecture = load_timm("test_vit", model_args=args, pretrained=False, pretrained_cfg={"mean": [0.3]})
    preprocess = Preprocess.of(model, (1, 64, 64), (0.3,), (0.3,))
    model, stated = with_preparation(model, architecture, preprocess)
    assert stated is not None
    built = build(stated)
    built.load_state_dict(model.state_dict())
    assert Preprocess.of(built) == Preprocess.of(model) == preprocess
    image = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(built(image), model(image))
