import itertools
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from torch import nn

from hypercompress import from_pretrained
from hypercompress.data import Preprocess
from hypercompress.errors import DataError, ModelError, NonFiniteError
from lightning_modules import optimization
from lightning_modules.callbacks import SaveStudent
from lightning_modules.data import ImageDataModule
from lightning_modules.images import CachedImages
from lightning_modules.optimization import Optimization, SettingError
from lightning_modules.systems import require_finite_loss, require_labels
from lightning_modules.teacher import Teacher

MODEL_ARGS = {"in_chans": 1, "num_classes": 10}
PRETRAINED_CFG = {"input_size": [1, 28, 28], "mean": [0.286], "std": [0.353]}


def tiny(optimization: Optimization | None = None) -> Teacher:
    return Teacher("test_efficientnet", MODEL_ARGS, PRETRAINED_CFG, optimization=optimization)


def test_the_rate_rises_to_its_highest_and_falls_to_zero() -> None:
    factor = Optimization(warmup=0.25).factor(100)
    rates = [factor(step) for step in range(101)]
    assert all(one < two for one, two in itertools.pairwise(rates[:26]))
    assert rates[25] == max(rates) == 1.0
    assert all(one > two for one, two in itertools.pairwise(rates[25:]))
    assert rates[100] == 0.0
    assert factor(500) == 0.0  # a longer run does not rise again


def test_a_constant_rate_and_no_rise() -> None:
    assert {Optimization(schedule="constant", warmup=0.0).factor(10)(step) for step in range(20)} == {1.0}
    assert Optimization(warmup=0.0).factor(10)(0) == 1.0


def test_an_optimiser_that_nobody_knows_is_refused_when_it_is_named() -> None:
    with pytest.raises(SettingError, match=r"received optimizer 'adamww'; expected a name of timm's optimisers"):
        Optimization("adamww")
    with pytest.raises(SettingError, match=r"'adahessian', which needs a second derivative that no step here takes"):
        Optimization("adahessian")
    with pytest.raises(SettingError, match=r"'lookahead_kron', which compiles itself for minutes"):
        Optimization("lookahead_kron")
    assert Optimization("lookahead_AdamW").configure([nn.Linear(2, 2)], 10)["optimizer"] is not None


def test_an_optimiser_that_cannot_be_had_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_card(*_: object, **__: object) -> None:
        raise AssertionError("CUDA required for APEX optimizers")

    monkeypatch.setattr(optimization, "create_optimizer_v2", without_card)
    with pytest.raises(SettingError, match=r"'fusedadam', which cannot be had here \(AssertionError: CUDA required"):
        Optimization("fusedadam", 0.1).configure([nn.Linear(2, 2)], 10)


def test_labels_smoothed_away_are_refused() -> None:
    with pytest.raises(SettingError, match=r"received label_smoothing 1\.5; expected a share in \[0, 1\)"):
        Teacher("test_efficientnet", MODEL_ARGS, PRETRAINED_CFG, label_smoothing=1.5)


def test_images_that_the_model_does_not_take_are_refused_before_the_first_step(
    trainer: Callable[..., Trainer],
) -> None:
    """28 pixels are no number of patches of 16."""
    system = Teacher("test_vit", MODEL_ARGS, PRETRAINED_CFG)
    with pytest.raises(ModelError, match=r"received images of 1 x 28 x 28 that the teacher does not take"):
        trainer(max_steps=1).fit(system, ImageDataModule("fashion_mnist_mini", limit=32))


def test_biases_and_norms_do_not_decay() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    for listed in ([model], [model[0], model[1]]):
        made = Optimization("adamw", 0.1, weight_decay=0.5).configure(listed, 10)
        optimizer = made["optimizer"]
        assert isinstance(optimizer, torch.optim.Optimizer)
        decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        expected = {id(p): 0.5 if p is model[0].weight else 0.0 for p in model.parameters()}
        assert decays == expected


def test_a_model_names_what_else_does_not_decay() -> None:
    """timm's vision transformers keep their position embedding, a matrix, from decay."""
    system = Teacher("test_vit", {**MODEL_ARGS, "img_size": 28, "patch_size": 7}, PRETRAINED_CFG)
    optimizer = Optimization("adamw", 0.1, weight_decay=0.5).configure([system.network], 10)["optimizer"]
    assert isinstance(optimizer, torch.optim.Optimizer)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decays[id(system.network.get_parameter("pos_embed"))] == 0.0


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"weight_decay": -1.0}, {"warmup": 1.0}, {"momentum": -1.0}])
def test_wrong_optimization(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected lr above 0, weight_decay 0 or more, warmup and momentum in"):
        Optimization(**wrong)


def test_it_learns_and_leaves_a_folder_that_needs_no_overrides(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    system = tiny(Optimization("adamw", 1e-2, 0.0))
    images = ImageDataModule("fashion_mnist_mini", batch_size=32, limit=768, val_limit=256, augment="flip")
    run = trainer(max_epochs=2, limit_val_batches=0, callbacks=[SaveStudent(tmp_path / "teacher")])
    run.fit(system, images)
    after = trainer().validate(system, images, verbose=False)[0]
    assert after["val/top1"] > 0.3  # chance is 0.1
    tested = trainer().test(system, images, verbose=False)[0]  # of images without a test part: the same ones
    assert tested == {name.replace("val/", "test/"): value for name, value in after.items()}
    saved = from_pretrained(tmp_path / "teacher")
    assert Preprocess.of(saved.model) == images.preprocess()
    example = torch.randn(4, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(saved.eval()(example), system.network.eval()(example))


def test_training_runs_in_training_mode(trainer: Callable[..., Trainer]) -> None:
    """A loaded model is in evaluation mode, and Lightning leaves modes alone: BatchNorm would never adapt."""
    system = tiny()
    before = {name: value.clone() for name, value in system.network.named_buffers() if name.endswith("running_mean")}
    trainer(max_steps=1, limit_val_batches=0).fit(
        system, ImageDataModule("fashion_mnist_mini", limit=64, batch_size=32)
    )
    assert before
    assert all(not torch.equal(value, system.network.get_buffer(name)) for name, value in before.items())


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(
    trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    system = tiny(Optimization("sgd", 1e30, warmup=0.0))
    images = ImageDataModule("fashion_mnist_mini", limit=256, batch_size=32)
    run = trainer(max_epochs=2, limit_val_batches=0, callbacks=[SaveStudent(tmp_path / "teacher")])
    with pytest.raises(NonFiniteError, match=r"at step [1-7]; expected a finite one; lower the learning rate"):
        run.fit(system, images)
    assert not (tmp_path / "teacher").exists()


@pytest.mark.parametrize(("precision", "named"), [("16-mixed", True), ("32-true", False)])
def test_a_loss_that_is_not_finite_names_a_precision_of_little_room(
    precision: str, named: bool, monkeypatch: pytest.MonkeyPatch, trainer: Callable[..., Trainer]
) -> None:
    system = tiny()
    system.trainer = trainer()
    monkeypatch.setattr(type(system.trainer), "precision", precision)
    with pytest.raises(NonFiniteError, match="expected a finite one; ") as raised:
        require_finite_loss(torch.tensor(torch.nan), system)
    assert ("leave --trainer.precision 16-mixed, whose largest number is 65504" in str(raised.value)) == named


def test_labels_are_needed() -> None:
    require_labels(torch.tensor([0, 3]))
    with pytest.raises(DataError, match="images without labels"):
        require_labels(torch.tensor([0, -1]))
    with pytest.raises(DataError, match="images without labels"):
        tiny().training_step((torch.randn(2, 1, 28, 28), torch.tensor([-1, -1])))


def test_an_unknown_name() -> None:
    with pytest.raises(ModelError, match="resnet18"):
        Teacher("resnet_18")


def test_the_same_seed_gives_the_same_teacher(trainer: Callable[..., Trainer]) -> None:
    weights = []
    for _ in range(2):
        torch.manual_seed(3)
        system = tiny()
        images = ImageDataModule("fashion_mnist_mini", limit=128, batch_size=32, augment="shift")
        trainer(max_steps=3, limit_val_batches=0).fit(system, images)
        assert isinstance(images.train_dataloader().dataset, CachedImages)
        weights.append(system.state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_more_classes_than_outputs_are_refused(trainer: Callable[..., Trainer]) -> None:
    system = Teacher("test_efficientnet", {**MODEL_ARGS, "num_classes": 7}, PRETRAINED_CFG)
    with pytest.raises(DataError, match=r"received images whose labels .*: 10 classes in the data, 7 in"):
        trainer(max_steps=1).fit(system, ImageDataModule("fashion_mnist_mini", limit=64))


def test_a_run_that_only_a_clock_ends_has_no_cosine(trainer: Callable[..., Trainer]) -> None:
    data = ImageDataModule("fashion_mnist_mini", limit=64, batch_size=16)
    endless = {"max_steps": -1, "max_epochs": -1, "max_time": timedelta(seconds=0.5), "limit_val_batches": 0}
    with pytest.raises(SettingError, match=r"without a number of steps for the schedule cosine with warmup 0.25; .*"):
        trainer(**endless).fit(Teacher("test_efficientnet", MODEL_ARGS, PRETRAINED_CFG), data)
    constant = Optimization("adamw", 1e-3, 0.0, schedule="constant", warmup=0.0)
    run = trainer(**endless)
    run.fit(Teacher("test_efficientnet", MODEL_ARGS, PRETRAINED_CFG, optimization=constant), data)
    assert run.global_step > 0


def test_a_teacher_trained_in_double_precision_is_saved_in_single(trainer: Callable[..., Trainer]) -> None:
    system = tiny()
    trainer(max_steps=1, precision="64-true").fit(system, ImageDataModule("fashion_mnist_mini", limit=32, val_limit=32))
    assert {value.dtype for value in system.student().state_dict().values()} == {torch.float32, torch.int64}


def test_images_without_labels_do_not_stop_a_teacher_that_is_validated_on_them(
    trainer: Callable[..., Trainer], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It cannot learn from them, and no weight would change that."""
    for index in range(4):
        Image.new("L", (28, 28), 60 * index).save(tmp_path / f"{index}.png")
    data = ImageDataModule("fashion_mnist_mini", val_data=str(tmp_path), limit=32, batch_size=16)
    run = trainer(max_steps=1)
    with caplog.at_level("INFO"):
        run.fit(tiny(), data)
    assert run.global_step == 1
    assert "top-1 is not measured: these images have no labels" in caplog.text
    with pytest.raises(DataError, match=r"sort the images into class sub-folders$"):
        trainer(max_steps=1, limit_val_batches=0).fit(tiny(), ImageDataModule(str(tmp_path), batch_size=2))
