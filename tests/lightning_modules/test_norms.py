"""BatchNorm during distillation: kept as it is where a batch's own moments would cost more than the student lacks."""

import copy
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn

from hypercompress import Budget, compress, from_pretrained
from hypercompress.data import Preprocess, open_data
from hypercompress.running.norms import remembering_norms
from lightning_modules.data import ImageDataModule
from lightning_modules.distillation import Distillation
from lightning_modules.losses import Losses
from lightning_modules.norms import COSTS, batch_costs, freeze_if_better
from lightning_modules.optimization import Optimization, SettingError
from lightning_modules.source import TeacherSource
from lightning_modules.teacher import Teacher
from tests.lightning_modules.conftest import MODEL, MODEL_ARGS, PRETRAINED_CFG

Folders = tuple[Path, Path]


def near(folders: Folders, lr: float = 1e-6, **options: object) -> Distillation:
    """A student that is its teacher."""
    return distilled(folders[0], folders, lr, **options)


def distilled(
    student: Path, folders: Folders, lr: float, losses: Losses | None = None, **options: object
) -> Distillation:
    teacher = TeacherSource(str(folders[0]))
    options = {"mixing": False, **options}  # which would freeze them
    return Distillation(student, teacher, losses, Optimization("adamw", lr, 0.0, warmup=0.1), **options)


def images(**options: object) -> ImageDataModule:
    return ImageDataModule("fashion_mnist_mini", **{"batch_size": 32, "limit": 256, "val_limit": 128, **options})


def moments(system: Distillation | nn.Module) -> list[Tensor]:
    network = system.network if isinstance(system, Distillation) else system
    return [buffer.clone() for norm in remembering_norms(network) for buffer in norm.buffers()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_student_that_is_near_keeps_its_moments_and_stays_near(
    folders: Folders, trainer: Callable[..., Trainer]
) -> None:
    found = {}
    for norms in ("auto", "training"):
        system = near(folders, norms=norms)
        before = moments(system)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*the steps made the student worse")
            trainer(max_steps=6, val_check_interval=2).fit(system, images())  # validation in between thaws nothing
        found[norms] = system.fidelity["kl"]
        assert same(before, moments(system)) == (norms == "auto")
        assert system.beginning.frozen == (norms == "auto")
    assert found["auto"] < 1e-5
    assert found["training"] > 1e-3, "steps of next to nothing make a student worse that normalises by the batch"


def test_scale_and_shift_of_frozen_norms_learn_and_dropout_stays(
    folders: Folders, trainer: Callable[..., Trainer]
) -> None:
    system = near(folders, lr=1e-3, norms="frozen")
    system.network.drop = nn.Dropout(0.5)
    before = [norm.weight.detach().clone() for norm in remembering_norms(system.network)]
    trainer(max_steps=2, limit_val_batches=0).fit(system, images())
    assert all(not norm.training for norm in remembering_norms(system.network))
    assert system.network.drop.training
    after = [norm.weight for norm in remembering_norms(system.network)]
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_a_student_that_is_far_trains_as_usual(
    folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """Its layers give less variance than the norms have been told, so that the batch's moments bring it nearer."""
    teacher = from_pretrained(folders[0])
    compress(teacher.model, Budget(params=0.6), generator="svd", architecture=teacher.architecture).save_pretrained(
        tmp_path / "far"
    )
    system = distilled(tmp_path / "far", folders, 1e-3)
    before = moments(system)
    trainer(max_steps=2, limit_val_batches=0).fit(system, images())
    assert system.beginning.frozen is False
    assert not same(before, moments(system))


@pytest.mark.parametrize(
    ("losses", "frozen"),
    [(Losses(logits=0.0, features=1.0), True), (Losses(labels=1.0), False), (Losses(0.0, 1.0, 0.0, 1.0), False)],
)
def test_any_run_without_labels_chooses_by_its_kl(
    losses: Losses, frozen: bool, folders: Folders, trainer: Callable[..., Trainer]
) -> None:
    system = near(folders, losses=losses)
    trainer(max_steps=1, limit_val_batches=0).fit(system, images())
    assert system.beginning.frozen is frozen


@pytest.mark.filterwarnings("ignore:on validation images of")
def test_a_batch_of_one_image_is_told_where_norms_need_more(folders: Folders, trainer: Callable[..., Trainer]) -> None:
    """A BatchNorm of the last stage sees one value of each channel; as it was saved it needs none."""
    run = {"max_steps": 1, "limit_val_batches": 0}
    labels = Losses(logits=0.0, features=0.0, labels=1.0)
    single = ImageDataModule("fashion_mnist_mini", limit=4, batch_size=1)
    for system in (near(folders, losses=labels), Teacher(MODEL, MODEL_ARGS, PRETRAINED_CFG)):
        with pytest.raises(SettingError, match=r"a batch of one image for BatchNorms .* --model.norms frozen"):
            trainer(**run).fit(system, single)
    frozen = trainer(**run)
    frozen.fit(near(folders, losses=labels, norms="frozen"), single)
    assert frozen.global_step == 1


def test_each_fit_chooses_anew(
    folders: Folders, trainer: Callable[..., Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    system = near(folders)
    trainer(max_steps=1, limit_val_batches=0).fit(system, images())
    assert system.beginning.frozen
    monkeypatch.setattr("lightning_modules.norms.COSTS", math.inf)
    trainer(max_steps=1, limit_val_batches=0).fit(system, images())
    assert not system.beginning.frozen


@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")
def test_averages_that_refill_the_moments_need_training_mode(folders: Folders, trainer: Callable[..., Trainer]) -> None:
    averaging = StochasticWeightAveraging(swa_lrs=1e-4, swa_epoch_start=1)
    system = near(folders)
    trainer(max_epochs=3, limit_val_batches=0, callbacks=[averaging]).fit(system, images(limit=64))
    assert not system.beginning.frozen
    with pytest.raises(SettingError, match="norms frozen with StochasticWeightAveraging"):
        trainer(max_epochs=1, limit_val_batches=0, callbacks=[averaging]).fit(near(folders, norms="frozen"), images())


@pytest.mark.parametrize(("here", "everywhere"), [(2.0, 1.2), (1.2, 2.0)])
def test_several_ranks_choose_together(here: float, everywhere: float, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ranks(SingleDeviceStrategy):
        def reduce(self, tensor: Tensor, *_: object, reduce_op: str) -> Tensor:
            assert (float(tensor), reduce_op) == (pytest.approx(here), "mean")
            return torch.tensor(everywhere)

    monkeypatch.setattr("lightning_modules.norms.batch_costs", lambda *_: here)
    network = nn.Sequential(nn.BatchNorm1d(3)).train()
    frozen = freeze_if_better(network, torch.zeros(2, 3, 1, 1), lambda x: x.sum(), Ranks(torch.device("cpu")))
    assert frozen == (everywhere > COSTS) == (not network[0].training)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # as in any resumed run
def test_a_resumed_run_goes_on_with_the_choice_of_the_first_batch(
    folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saving = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=2)
    options = {"callbacks": [saving], "enable_checkpointing": True, "limit_val_batches": 0}
    trainer(max_steps=2, **options).fit(near(folders, lr=1e-3), images())
    resumed = near(folders, lr=1e-3)
    before = moments(resumed)
    monkeypatch.setattr("lightning_modules.norms.COSTS", math.inf)  # asked again it would say no
    trainer(max_steps=4, **options).fit(resumed, images(), ckpt_path=tmp_path / "step=2.ckpt", weights_only=True)
    assert resumed.beginning.frozen
    assert same(before, moments(resumed))


def test_the_costs_are_those_of_the_batch_and_nothing_is_changed(folders: Folders) -> None:
    """Against the two losses computed by hand on copies; modes, buffers and the random state stay."""
    teacher, student = (from_pretrained(folder).model for folder in folders)
    student.conv_head = nn.Sequential(student.conv_head, nn.Dropout(0.5))  # in evaluation mode in both passes
    data = open_data("fashion_mnist_mini", Preprocess.of(teacher), train=True)
    batch = torch.stack([data[place][0] for place in range(32)])
    with torch.no_grad():
        target = teacher(batch)

        def error(logits: Tensor) -> Tensor:
            return F.mse_loss(logits, target)

        by_batch = copy.deepcopy(student).eval()
        for module in by_batch.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.train()
        wanted = error(by_batch(batch)) / error(copy.deepcopy(student).eval()(batch))
    student.train()
    before, state = moments(student), torch.get_rng_state()
    assert batch_costs(student, batch, error) == pytest.approx(float(wanted), rel=1e-4)
    assert batch_costs(student, batch, lambda logits: error(logits) * torch.rand(())) is not None  # a loss that draws
    assert same(before, moments(student))
    assert torch.equal(state, torch.get_rng_state())
    assert all(module.training for module in student.modules())


def test_a_single_image_has_no_moments() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3))
    assert batch_costs(network, torch.randn(1, 1, 2, 2), lambda logits: logits.square().mean()) == math.inf
    assert batch_costs(network[:2], torch.randn(1, 1, 2, 2), lambda logits: logits.square().mean()) is None
