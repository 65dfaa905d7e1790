"""Images of a step pasted into each other, where a run has few of them and follows a teacher alone."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from torch import Tensor

from hypercompress.running.norms import remembering_norms
from lightning_modules import beginning, distillation
from lightning_modules.data import ImageDataModule
from lightning_modules.distillation import Distillation
from lightning_modules.losses import Losses
from lightning_modules.mixing import mixed
from lightning_modules.optimization import Optimization, SettingError
from lightning_modules.source import TeacherSource

Folders = tuple[Path, Path]


@pytest.fixture(autouse=True)
def no_student_is_far(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the fixture, of a teacher that has learnt nothing, would be."""
    monkeypatch.setattr(beginning, "FAR", 1e3)


def system_of(folders: Folders, lr: float = 1e-3, **options: object) -> Distillation:
    return Distillation(folders[1], TeacherSource(str(folders[0])), None, Optimization("adamw", lr, 0.0), **options)


def images(**options: object) -> ImageDataModule:
    return ImageDataModule("fashion_mnist_mini", **{"batch_size": 16, "limit": 64, "val_limit": 32, **options})


def weights(system: Distillation) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in system.network.state_dict().items()}


def test_each_image_has_a_box_of_another_in_its_place() -> None:
    random = torch.Generator().manual_seed(0)
    given = torch.arange(400.0).reshape(400, 1, 1, 1).expand(400, 2, 9, 14).clone()
    found = mixed(given, random)
    own = (found == given).all(1)
    assert ((found == given) | (found == given.roll(1, 0))).all()
    rows, columns = (~own).any(2), (~own).any(1)
    # What is another's is where one of its rows meets one of its columns, and both are without gaps: a box.
    assert torch.equal(~own, rows[:, :, None] & columns[:, None, :])
    for places in (rows, columns):
        edges = torch.nn.functional.pad(places, (1, 1)).int().diff().abs().sum(1)
        assert set(edges.tolist()) <= {0, 2}
    shares = (~own).flatten(1).float().mean(1).sort().values
    torch.testing.assert_close(shares, torch.linspace(0, 1, 400), atol=0.1, rtol=0)  # any share, all equally likely
    corners = own.float().mean(0)
    assert corners[0, 0] == pytest.approx(float(corners[-1, -1]), abs=0.1)


def test_what_is_drawn_is_the_generators_alone_and_one_image_stays() -> None:
    given = torch.randn(5, 3, 8, 8)
    kept, state = given.clone(), torch.get_rng_state()
    one, other = (mixed(given, torch.Generator().manual_seed(seed)) for seed in (1, 1))
    assert torch.equal(one, other)
    assert not torch.equal(one, mixed(given, torch.Generator().manual_seed(2)))
    assert torch.equal(given, kept)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(mixed(given[:1], torch.Generator().manual_seed(3)), given[:1])
    with pytest.raises(SettingError, match=r"of shape \[5, 8, 8\] to be mixed; expected images"):
        mixed(given[:, 0], torch.Generator())


@pytest.mark.parametrize(
    ("limit", "mixing", "norms", "losses", "expected"),
    [
        (64, "auto", "auto", Losses(), True),
        (64, "auto", "frozen", Losses(), True),
        (64, "auto", "training", Losses(), False),
        (64, False, "auto", Losses(), False),
        (64, "auto", "auto", Losses(labels=1.0), False),
        (96, "auto", "auto", Losses(), False),
        (96, True, "auto", Losses(), True),
    ],
)
def test_few_images_are_mixed_where_a_teacher_alone_is_followed(
    limit: int,
    mixing: bool | str,
    norms: str,
    losses: Losses,
    expected: bool,
    folders: Folders,
    trainer: Callable[..., Trainer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the teacher and the student are asked about is the same, and the norms keep the moments of whole images."""
    monkeypatch.setattr(beginning, "FEW", 64)
    asked = []
    monkeypatch.setattr(distillation, "mixed", lambda given, random: asked.append(given) or mixed(given, random))
    optimization = Optimization("adamw", 1e-3, 0.0)
    teacher = TeacherSource(str(folders[0]))
    system = Distillation(folders[1], teacher, losses, optimization, norms=norms, mixing=mixing)
    seen: dict[str, list[Tensor]] = {"student": [], "teacher": []}
    for name, network in (("student", system.network), ("teacher", system.teacher)):
        network.register_forward_pre_hook(lambda _, given, name=name: seen[name].append(given[0].clone()))
    before = [buffer.clone() for norm in remembering_norms(system.network) for buffer in norm.buffers()]
    trainer(max_steps=2, limit_val_batches=0).fit(system, images(limit=limit))
    assert (len(asked), system.beginning.mixed) == (2 * expected, expected)
    assert torch.equal(seen["student"][-1], seen["teacher"][-1])
    if expected:
        assert not torch.equal(seen["student"][-1], asked[-1])
        after = [buffer for norm in remembering_norms(system.network) for buffer in norm.buffers()]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_steps_on_mixed_images_that_made_it_worse_are_advised_whole_ones(
    folders: Folders, trainer: Callable[..., Trainer]
) -> None:
    with pytest.warns(UserWarning, match=r"made the student worse; try --model.mixing false, lower"):
        trainer(max_steps=3).fit(system_of(folders, lr=1.0), images())


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # as in any resumed run
def test_a_run_that_goes_on_mixes_as_one_that_was_not_stopped(
    folders: Folders, trainer: Callable[..., Trainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(system: Distillation, **further: object) -> None:
        saving = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=3, save_top_k=-1)
        options = {"callbacks": [saving], "enable_checkpointing": True, "limit_val_batches": 0}
        trainer(max_steps=6, **options).fit(system, images(), weights_only=True, **further)

    whole = system_of(folders)
    run(whole)
    monkeypatch.setattr(beginning, "FEW", 0)  # asked again it would not mix
    resumed = system_of(folders)
    run(resumed, ckpt_path=tmp_path / "step=3.ckpt")
    assert resumed.beginning.mixed
    theirs = weights(whole)
    assert all(torch.equal(value, theirs[name]) for name, value in weights(resumed).items())
    with pytest.raises(SettingError, match="mixing auto instead of False"):
        run(system_of(folders, mixing=False), ckpt_path=tmp_path / "step=3.ckpt")


@pytest.mark.parametrize(("far", "batch", "expected"), [(0.99, 16, True), (1.01, 16, False), (0.0, 1, False)])
def test_a_student_that_is_far_or_sees_one_image_in_a_step_sees_it_whole(
    far: float,
    batch: int,
    expected: bool,
    folders: Folders,
    trainer: Callable[..., Trainer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(beginning, "FAR", 1.0)
    monkeypatch.setattr(beginning, "distillation_kl", lambda student, teacher: torch.tensor(far))
    system = system_of(folders, lr=1e-6)
    monkeypatch.setattr(distillation, "mixed", lambda given, _: pytest.fail("mixed") if not expected else given)
    trainer(max_steps=1, limit_val_batches=0).fit(system, images(batch_size=batch))
    assert system.beginning.mixed is expected


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"losses": Losses(labels=1.0)}, "mixing true with labels to follow"),
        ({"norms": "training"}, "mixing true and norms training"),
    ],
)
def test_what_cannot_be_mixed_is_refused(
    options: dict[str, object], match: str, folders: Folders, trainer: Callable[..., Trainer]
) -> None:
    teacher, optimization = TeacherSource(str(folders[0])), Optimization("adamw", 1e-3, 0.0)
    system = Distillation(folders[1], teacher, optimization=optimization, mixing=True, **options)
    with pytest.raises(SettingError, match=match):
        trainer(max_steps=1).fit(system, images())
    system.beginning.mixing = "true"  # as from Python, where nothing reads it as a word
    with pytest.raises(SettingError, match="received mixing 'true'"):
        system.beginning.ask()


@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")
def test_averages_that_refill_the_moments_see_whole_images(folders: Folders, trainer: Callable[..., Trainer]) -> None:
    averaging = StochasticWeightAveraging(swa_lrs=1e-4, swa_epoch_start=1)
    run = {"max_epochs": 2, "limit_val_batches": 0, "callbacks": [averaging]}
    system = system_of(folders)
    trainer(**run).fit(system, images())
    assert system.beginning.mixed is False
    with pytest.raises(SettingError, match="mixing true with StochasticWeightAveraging"):
        trainer(**run).fit(system_of(folders, mixing=True), images())
