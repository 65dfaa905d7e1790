"""Meta-training of the transfer network as a run: what it leaves, that it resumes exactly, and what it keeps apart."""

import json
import re
import shutil
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import nn

import train
from hypercompress.data import Preprocess
from hypercompress.data.episodes import Pool, sample_episode
from hypercompress.errors import DataError
from hypercompress.models import load_model
from hypercompress.transfer import load_network
from lightning_modules.best import KeepsBest
from lightning_modules.meta_training import EpisodeModule
from lightning_modules.optimization import SettingError
from lightning_modules.resuming import hash_of
from lightning_modules.transfer import Sizes, Sources, TransferTraining, clipped, moved
from tests.lightning_modules.conftest import quiet

Folders = tuple[Path, Path]


def arguments(root: Path, folders: Folders) -> list[str]:
    words = ["--config", str(root / "configs" / "debug" / "transfer.yaml"), "--model.out", "network"]
    return [*words, f"--model.sources.backbones=[{folders[0]}]", f"--model.sources.held_backbones=[{folders[1]}]"]


def fit(root: Path, folders: Folders, *more: str) -> None:
    assert train.main(["fit", *arguments(root, folders), *more]) == 0


def last_weights() -> dict[str, torch.Tensor]:
    state = torch.load("runs/debug/transfer/last.ckpt", weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if name.startswith("network")}


@pytest.mark.filterwarnings(
    "ignore:Checkpoint directory .* exists and is not empty",
    "ignore:Experiment logs directory .* exists and is not empty",
)
def test_a_run_leaves_a_network_and_a_resumed_one_ends_the_same(
    root: Path, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint is older than the validation of its step: the run that goes on from it makes up for it."""
    monkeypatch.chdir(tmp_path)
    rows: list[dict[str, float]] = []
    judged = KeepsBest.judged
    monkeypatch.setattr(KeepsBest, "judged", lambda self, row, score: (rows.append(row), judged(self, row, score))[1])
    constant = ("--model.optimization.schedule", "constant")
    fit(root, folders, *constant)
    whole, found = last_weights(), [*rows]
    assert [row["step"] for row in found] == [2, 4]
    out = Path("network")
    assert load_network(out) is not None
    card = json.loads((out / "config.json").read_text())["training"]
    assert card["sources"]["backbones"] == ["teacher"]
    assert str(tmp_path) not in json.dumps(card)
    assert {"val/held_classes_loss", "val/held_data_accuracy"} <= set(card["curve"][-1])
    assert bool(whole["network.changes.weight"].any())  # it starts at zero, so it has learnt something
    shutil.rmtree("runs")
    fit(root, folders, *constant, "--trainer.max_steps", "2")
    shutil.rmtree("runs/debug/transfer/logs")
    for expected in (found, found[1:]):  # the second goes on from its end, where no step is left
        rows.clear()
        fit(root, folders, *constant, "--ckpt_path", "runs/debug/transfer/last.ckpt")
        assert all(torch.equal(value, whole[name]) for name, value in last_weights().items())
        assert rows == expected


@pytest.mark.filterwarnings(
    "ignore:Checkpoint directory .* exists and is not empty", "ignore:Experiment logs directory .* exists"
)
def test_only_a_fit_writes_the_network(
    root: Path, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`validate`, `test` and a trial run say what they find, and of which step, and leave what was trained."""
    monkeypatch.chdir(tmp_path)
    fit(root, folders)
    before = {path.name: path.read_bytes() for path in Path("network").iterdir()}
    read = ("--ckpt_path", "runs/debug/transfer/last.ckpt")
    trials = {"4": (("validate", *read), ("test", *read)), "1": (("fit", "--trainer.fast_dev_run", "true"),)}
    for step, (command, *more) in ((step, words) for step, several in trials.items() for words in several):
        caplog.clear()
        with caplog.at_level("INFO"):
            assert train.main([command, *arguments(root, folders), *more]) == 0
        assert f"step {step}, val/held_classes_loss" in caplog.text
    assert {path.name: path.read_bytes() for path in Path("network").iterdir()} == before


@pytest.mark.filterwarnings("ignore:nothing was validated", "ignore:Checkpoint directory .* exists and is not empty")
def test_a_run_without_a_validation_keeps_its_last_network(
    root: Path, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fit(root, folders, "--trainer.limit_val_batches", "0", "--trainer.max_steps", "2")
    last, written = last_weights(), load_network(Path("network")).state_dict()
    assert all(torch.equal(value, last[f"network.{name}"]) for name, value in written.items())


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_run_without_a_number_of_steps(
    root: Path, folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Episodes are drawn without end: a number of epochs would be one of nothing."""
    monkeypatch.chdir(tmp_path)
    constant = ("--model.optimization.schedule", "constant", "--model.optimization.warmup", "0")
    epochs = ("--trainer.max_steps", "-1", "--trainer.max_epochs", "2")
    assert train.main(["fit", *arguments(root, folders), *constant, *epochs]) == 2
    assert "error: received max_steps -1; expected the number of steps" in capsys.readouterr().err
    assert not Path("network").exists()


def test_classes_held_out_and_those_of_the_held_out_set_are_never_trained_on(folders: Folders) -> None:
    sources = Sources((str(folders[0]),), (str(folders[1]),), ("fashion_mnist_mini", "glyphs"), "digits", limit=2000)
    system = TransferTraining(sources, Path("out"), sizes=Sizes(ways=(2, 7)))
    system.setup("fit")
    (member,) = system.members["train"]
    for first, second in zip(member.train, member.held_classes, strict=True):
        assert not set(first.classes) & set(second.classes)
        assert len(first.classes) > len(second.classes) >= 2
    glyphs = set(member.train[1].classes) | set(member.held_classes[1].classes)
    assert not glyphs & set(range(10))  # the rendered digits
    assert not any(parameter.requires_grad for parameter in member.backbone.parameters())
    assert not any(name.startswith("members") for name, _ in system.named_parameters())


def test_without_a_held_out_backbone_there_is_nothing_to_choose_by(folders: Folders) -> None:
    with pytest.raises(DataError, match="received 1 backbones and 0 held out; expected at least one of each"):
        Sources((str(folders[0]),), (), ("fashion_mnist_mini",), "digits", limit=100)


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ({"data": ()}, r"received 0 sets of data and the domains plain; expected at least one of each"),
        ({"domains": ()}, r"received 1 sets of data and the domains none; expected at least one of each"),
        ({"domains": ("plain", "foo")}, r"domains plain, foo; expected .* domains among plain, inverted, edges"),
        (
            {"held_backbones": ("b", "nowhere/../a")},
            r"received \S+/a among the backbones and among those held out; exp",
        ),
    ],
)
def test_sources_that_no_episode_can_be_drawn_from_are_refused(wrong: dict[str, Any], fault: str) -> None:
    with pytest.raises(DataError, match=fault):
        Sources(**{"backbones": ("a",), "held_backbones": ("b",), "data": ("digits",), "held_data": "glyphs", **wrong})


@pytest.mark.parametrize(
    "wrong", [{"ways": (7, 3)}, {"ways": (1, 7)}, {"shots": (8, 1)}, {"queries": 0}, {"clip": 0.0}]
)
def test_sizes_that_no_episode_can_have_are_refused_before_anything_is_loaded(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=r"received ways .* expected the least of each before the most"):
        Sizes(**wrong)


def small(folders: Folders, limit: int, held_classes: float = 0.4, ways: int = 2) -> TransferTraining:
    """Training on few images, whose smallest episodes take nine of a class."""
    places = (str(folders[0]),), (str(folders[1]),), ("fashion_mnist_mini",), "digits"
    sizes = Sizes(ways=(ways, 7), shots=(1, 8), queries=8)
    return TransferTraining(Sources(*places, limit=limit, held_classes=held_classes), Path("out"), sizes=sizes)


def test_classes_of_too_few_images_for_an_episode_are_left_out(
    folders: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    """A small limit leaves them, and a run would end when it first draws from their set."""
    system = small(folders, limit=80)
    with caplog.at_level("INFO"):
        system.setup("fit")
    assert re.search(r"fashion_mnist_mini: left out \d classes of fewer than 9 images", caplog.text)
    for member in (*system.members["train"], *system.members["held"]):
        pools = (*member.train, *member.held_classes, member.held_data)
        assert 4 <= len(pools[0].classes) + len(pools[1].classes) < 10
        assert not set(pools[0].classes) & set(pools[1].classes)
        for pool in pools:
            assert min(len(found) for found in pool.places.values()) >= 9
            for seed in range(3):
                outcome = system.outcome(member, pool, torch.Generator().manual_seed(seed))
                assert bool(outcome.loss.isfinite())


def test_a_limit_with_images_for_every_class_leaves_none_out(folders: Folders) -> None:
    system = small(folders, limit=400)
    system.setup("fit")
    (member,) = system.members["train"]
    assert sorted((*member.train[0].classes, *member.held_classes[0].classes)) == list(range(10))
    assert (len(member.train[0]) + len(member.held_classes[0]), len(member.held_data)) == (400, 400)


def test_the_loss_that_is_logged_is_that_of_all_processes(folders: Folders, tmp_path: Path) -> None:
    system = small(folders, limit=400)
    system.out = tmp_path / "out"
    run = quiet(max_steps=1, limit_val_batches=0)
    with patch.object(system, "log") as logged, pytest.warns(UserWarning, match="nothing was validated"):
        run.fit(system, EpisodeModule())
    synced = {call.kwargs["name"]: call.kwargs["sync_dist"] for call in logged.call_args_list}
    assert synced == {"train/loss": True, "train/change": True}


def test_a_backbone_is_known_by_its_weights(folders: Folders, tmp_path: Path) -> None:
    """Not by where it lies, nor by its name alone."""
    for name, folder in zip(("first", "second"), folders, strict=True):
        shutil.copytree(folder, tmp_path / name / "backbone")
    places = [str(tmp_path / name / "backbone") for name in ("first", "second")]
    sources = Sources((places[0],), (places[1],), ("fashion_mnist_mini",), "digits", limit=400)
    system = TransferTraining(sources, Path("out"), sizes=Sizes(ways=(2, 7), shots=(1, 8), queries=8))
    assert "weights of backbone" not in system.identity()
    system.setup("fit")
    known = [hash_of(load_model(str(folder))[0]) for folder in folders]
    assert system.identity()["weights of backbone"] == ", ".join(known)


@pytest.mark.parametrize(
    ("limit", "held_classes", "ways", "fault"),
    [
        (30, 0.4, 2, "received 0 classes of fashion_mnist_mini with the 9 images of an episode, among 30 images; exp"),
        (400, 0.4, 6, "received 10 classes of fashion_mnist_mini .* among 400 images; expected at least 12; raise"),
        (400, 0.2, 3, "received held_classes 0.2, which parts the classes of fashion_mnist_mini into 8 and 2; expe"),
    ],
)
def test_sets_that_cannot_fill_the_smallest_episodes_are_refused_at_the_start(
    folders: Folders, limit: int, held_classes: float, ways: int, fault: str
) -> None:
    with pytest.raises(DataError, match=fault):
        small(folders, limit, held_classes, ways).setup("fit")


def test_the_gradient_is_clipped_and_reaches_every_parameter() -> None:
    a, b, idle = (nn.Parameter(torch.randn(3)) for _ in range(3))
    for most in (0.1, 1e6):
        for parameter in (a, b, idle):
            parameter.grad = None
        loss = (a * torch.tensor([3.0, 0, 4])).sum() + 2 * b.sum()
        wanted = torch.autograd.grad(loss, [a, b], retain_graph=True)
        clipped(loss, [a, b, idle], most).backward()
        assert a.grad is not None
        assert b.grad is not None
        assert idle.grad is not None
        norm = float(torch.cat(wanted).norm())
        torch.testing.assert_close(torch.cat([a.grad, b.grad]), torch.cat(wanted) * min(1.0, most / norm))
        assert not bool(idle.grad.any())


def test_an_episode_changes_its_guise_in_pixels() -> None:
    preprocess = Preprocess((1, 8, 8), (0.3,), (0.2,))
    pixels = torch.rand(12, 1, 8, 8)
    pool = Pool("some", (pixels - 0.3) / 0.2, torch.arange(12) % 2)
    episode = sample_episode(pool, 2, 2, 1, torch.Generator().manual_seed(0))
    same = moved(episode, preprocess, "plain", torch.Generator())
    torch.testing.assert_close(same.support, episode.support)
    turned = moved(episode, preprocess, "inverted", torch.Generator())
    torch.testing.assert_close(turned.query * 0.2 + 0.3, 1 - (episode.query * 0.2 + 0.3))
    assert torch.equal(turned.query_labels, episode.query_labels)
