"""A run that goes on from a checkpoint ends with the weights of the run that never stopped, bit for bit; or it is
refused.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from hypercompress import from_pretrained
from lightning_modules.data import ImageDataModule, Inputs
from lightning_modules.losses import Losses
from lightning_modules.optimization import Optimization, SettingError
from lightning_modules.teacher import Teacher
from tests.lightning_modules import distilled
from tests.lightning_modules.conftest import quiet
from tests.lightning_modules.distilled import Folders

MODEL_ARGS = {"in_chans": 1, "num_classes": 10, "drop_rate": 0.5, "drop_path_rate": 0.3}
PRETRAINED_CFG = {"input_size": [1, 28, 28], "mean": [0.286], "std": [0.353]}
OWN = Optimization("adamw", 1e-3, weight_decay=0.0)


def system(optimization: Optimization | None = None, name: str = "test_efficientnet") -> Teacher:
    torch.manual_seed(0)
    return Teacher(name, MODEL_ARGS, PRETRAINED_CFG, optimization=optimization or OWN)


def images(augment: str) -> ImageDataModule:
    return ImageDataModule("fashion_mnist_mini", batch_size=16, limit=96, val_limit=32, augment=augment)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("augment", ["flip", "crop"])
@pytest.mark.parametrize("limit", [1.0, 4, 0.5])  # of the 6 batches of an epoch
def test_the_rest_of_a_run_is_that_of_the_whole(
    limit: float, augment: str, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """With dropout, stochastic depth and validation; from the end of an epoch and from after its first step."""
    saving = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    options: dict[str, Any] = {"max_steps": 10, "limit_train_batches": limit, "enable_checkpointing": True}
    options |= {"val_check_interval": 0.5, "callbacks": [saving]}
    whole = system()
    trainer(**options).fit(whole, images(augment))
    used = {1.0: 6, 4: 4, 0.5: 3}[limit]
    for step in (used, used + 1):
        resumed = system()
        torch.manual_seed(123)  # another process would not have the random state of this one either
        run = trainer(**options)
        run.fit(resumed, images(augment), ckpt_path=tmp_path / f"step={step}.ckpt", weights_only=True)
        assert run.global_step == 10
        state = resumed.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in whole.state_dict().items()), step


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("step", [1, 3, 4])  # in the middle of the first epoch, at its end, in the second
def test_the_length_may_be_told_in_epochs(step: int, trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    """Then the schedule asks how many batches there are before Lightning restores what the loader had handed out."""
    saving = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    options: dict[str, Any] = {"max_epochs": 2, "limit_train_batches": 3, "enable_checkpointing": True}
    options |= {"limit_val_batches": 0, "callbacks": [saving]}
    whole, resumed = system(), system()
    trainer(**options).fit(whole, images("flip"))
    run = trainer(**options)
    run.fit(resumed, images("flip"), ckpt_path=tmp_path / f"step={step}.ckpt", weights_only=True)
    assert run.global_step == 6
    state = resumed.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.state_dict().items())


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_double_precision_loads_what_it_saved(trainer: Callable[..., Trainer], tmp_path: Path) -> None:
    """In single precision, in which the system is made, the weights would be others."""
    saving = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    options: dict[str, Any] = {"max_steps": 2, "limit_val_batches": 0, "precision": "64-true"}
    options |= {"enable_checkpointing": True, "callbacks": [saving]}
    whole, resumed = system(), system()
    trainer(**options).fit(whole, images("none"))
    trainer(**options).fit(resumed, images("none"), ckpt_path=tmp_path / "step=1.ckpt", weights_only=True)
    state = resumed.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.state_dict().items())


def test_a_checkpoint_that_was_validated_tells_a_new_run_nothing(
    trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """The same data module begins its epoch at the first image."""
    first = trainer(max_steps=2, limit_val_batches=0)
    first.fit(system(), images("flip"))
    first.save_checkpoint(tmp_path / "two.ckpt")
    options = {"max_epochs": 1, "limit_val_batches": 0}
    used, fresh, data = system(), system(), images("flip")
    trainer(limit_val_batches=1).validate(used, data, ckpt_path=tmp_path / "two.ckpt", verbose=False, weights_only=True)
    used.load_state_dict(fresh.state_dict())
    for each, source in ((used, data), (fresh, images("flip"))):
        torch.manual_seed(1)
        trainer(**options).fit(each, source)
    state = used.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in fresh.state_dict().items())


@pytest.fixture(scope="module")
def one_step(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("one") / "step.ckpt"
    run = quiet(max_steps=1, limit_val_batches=0)
    run.fit(system(), images("flip"))
    run.save_checkpoint(path)
    return path


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (Optimization("adamw", 1e-2, weight_decay=0.0), "lr 0.001 instead of 0.01"),
        (Optimization("adamw", 1e-3, weight_decay=0.1), "weight_decay 0.0 instead of 0.1"),
        (Optimization("sgd", 1e-3, weight_decay=0.0), "optimizer adamw instead of sgd"),
    ],
)
def test_an_optimiser_that_would_go_on_as_it_was_is_refused(changed: Optimization, said: str, one_step: Path) -> None:
    with pytest.raises(SettingError, match=f"received a checkpoint of a run with {said}"):
        quiet(max_steps=2, limit_val_batches=0).fit(
            system(changed), images("flip"), ckpt_path=one_step, weights_only=True
        )


def test_the_schedule_may_change_and_a_validation_asks_for_no_optimiser(one_step: Path) -> None:
    longer = system(Optimization("adamw", 1e-3, 0.0, schedule="constant", warmup=0.0))
    run = quiet(max_steps=2, limit_val_batches=0)
    run.fit(longer, images("flip"), ckpt_path=one_step, weights_only=True)
    assert run.global_step == 2
    other = system(Optimization("sgd", 1.0))
    quiet(limit_val_batches=1).validate(other, images("flip"), ckpt_path=one_step, verbose=False, weights_only=True)


@pytest.fixture(scope="module")
def distilled_once(folders: Folders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("distilled") / "step.ckpt"
    run = quiet(max_steps=1, limit_val_batches=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")
        run.fit(distilled.system(folders), distilled.images(limit=64))
        run.save_checkpoint(path)
    return path


@pytest.mark.filterwarnings("ignore:top-1 is not measured")
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"student": True}, r"student \w{12} instead of \w{12}; expected"),
        ({"teacher": True}, r"teacher \w{12} instead of \w{12}; expected"),
        ({"losses": Losses(temperature=2.0)}, r"losses Losses\(.*temperature=1.0.* instead of .*temperature=2.0"),
        ({"data": {"val_data": "digits"}}, "val_data fashion_mnist_mini instead of digits; expected"),
        ({"data": {"inputs": Inputs(mean=(0.5,))}}, r"preparation \(.*\(0.286,\).* instead of .*\(0.5,\)"),
        ({"data": {"limit": 96}}, "images 64 instead of 96; expected"),
        ({"data": {"batch_size": 16}}, "batch_size 32 instead of 16; expected"),
        ({"data": {"augment": "flip"}}, "augment none instead of flip; expected"),
        ({"seed": 1}, r"seed 0 instead of 1; expected"),
        ({"norms": "frozen"}, "norms auto instead of frozen; expected"),
        ({"trainer": {"accumulate_grad_batches": 2}}, "accumulate_grad_batches 1 instead of 2; expected"),
        ({"processes": 2}, "processes 1 instead of 2; expected"),
        ({}, None),
        ({"data": {"limit": 64, "val_limit": 32, "workers": 1}}, None),
    ],
    ids=[
        *("student", "teacher", "losses", "data", "inputs", "limit", "batch_size", "augment", "seed", "norms"),
        *("accumulated", "processes", "none", "other"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(
    changed: dict[str, Any],
    said: str | None,
    folders: Folders,
    distilled_once: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the same shapes: its student would else be the result of this run; a folder that was moved is the same one."""
    moved = [tmp_path / folder.name for folder in folders]
    for old, new, name in zip(folders, moved, ("teacher", "student"), strict=True):
        student = from_pretrained(old)
        with torch.no_grad():
            next(student.parameters()).add_(1e-3 * (name in changed))
        student.save_pretrained(new)
    resumed = distilled.system((moved[0], moved[1]), changed.get("losses"), norms=changed.get("norms", "auto"))
    monkeypatch.setenv("PL_GLOBAL_SEED", str(changed.get("seed", 0)))
    monkeypatch.setattr(Trainer, "world_size", changed.get("processes", 1))
    data = distilled.images(**{"limit": 64, **changed.get("data", {})})
    run = quiet(max_steps=2, limit_val_batches=0, **changed.get("trainer", {}))
    if said is None:
        run.fit(resumed, data, ckpt_path=distilled_once, weights_only=True)
        assert run.global_step == 2
        return
    with pytest.raises(SettingError, match=f"received a checkpoint of another run: {said}"):
        run.fit(resumed, data, ckpt_path=distilled_once, weights_only=True)


def paint(folder: Path, greys: dict[str, int]) -> Path:
    for name, grey in greys.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (28, 28), grey).save(place)
    return folder


@pytest.mark.parametrize("other", ["b/9.png", "noise", None])
def test_a_folder_of_images_may_move_but_not_change(other: str | None, tmp_path: Path) -> None:
    """Neither its last name nor those of its files are a sign of what is in it."""
    greys = {"a/1.png": 10, "a/2.png": 20, "b/3.png": 30, "b/4.png": 40}
    first, second = paint(tmp_path / "here/photos", greys), paint(tmp_path / "there/photos", greys)
    if other == "noise":
        Image.effect_noise((28, 28), 50).save(second / "b/4.png")
    elif other is not None:
        (second / "b/4.png").rename(second / other)

    def run(folder: Path, steps: int, checkpoint: Path | None = None) -> Trainer:
        data = ImageDataModule(str(folder), inputs=Inputs(**PRETRAINED_CFG), batch_size=2)
        fit = quiet(max_steps=steps, limit_val_batches=0)
        fit.fit(system(), data, ckpt_path=checkpoint, weights_only=True)
        return fit

    run(first, 1).save_checkpoint(tmp_path / "one.ckpt")
    if other is None:
        assert run(second, 2, tmp_path / "one.ckpt").global_step == 2
    else:
        said = r"checkpoint of another run: images 4 \(files \w{12}\) instead of 4 \("
        with pytest.raises(SettingError, match=said):
            run(second, 2, tmp_path / "one.ckpt")


def test_another_start_of_a_teacher_and_a_checkpoint_of_earlier_versions(one_step: Path, tmp_path: Path) -> None:
    smoothed = Teacher("test_efficientnet", MODEL_ARGS, PRETRAINED_CFG, optimization=OWN, label_smoothing=0.1)
    options: dict[str, Any] = {"weights_only": True}
    with pytest.raises(SettingError, match=r"another run: label_smoothing 0 instead of 0\.1; expected one that this"):
        quiet(max_steps=2, limit_val_batches=0).fit(smoothed, images("flip"), ckpt_path=one_step, **options)
    content = torch.load(one_step, weights_only=True)
    del content["identity"]
    torch.save(content, tmp_path / "old.ckpt")
    run = quiet(max_steps=2, limit_val_batches=0)
    run.fit(smoothed, images("flip"), ckpt_path=tmp_path / "old.ckpt", **options)
    assert run.global_step == 2


def test_the_checkpoint_of_another_network_is_refused(one_step: Path) -> None:
    with pytest.raises(SettingError, match=r"another network: \d+ of its tensors are not those of Teacher, such as"):
        quiet(max_steps=2, limit_val_batches=0).fit(
            system(name="test_resnet"), images("flip"), ckpt_path=one_step, weights_only=True
        )
