"""Meta-training as a run: what it leaves, that it resumes exactly, and what it refuses."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock, patch

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.trainer.states import TrainerFn

import train
from benchmarks import meta_throughput
from hypercompress.generator import HypernetGenerator, load_generator
from hypercompress.specs import Unit
from lightning_modules import meta_training
from lightning_modules.episodes import Episodes
from lightning_modules.meta_training import EpisodeModule, MetaTraining, score_of, validation_budgets
from tests.lightning_modules.conftest import add, quiet, zoo_of


def fit(root: Path, zoo: Path, out: str, *more: str) -> Path:
    arguments = ["fit", "--config", str(root / "configs" / "debug" / "meta_train.yaml"), "--model.zoo", str(zoo)]
    assert train.main([*arguments, "--model.out", out, *more]) == 0
    return Path(out)


def two_budgets(patch: pytest.MonkeyPatch) -> None:
    """Of four, one of each unit: validation is what these tests wait for."""
    patch.setattr(meta_training, "validation_budgets", lambda *case: validation_budgets(*case)[1::2])


@pytest.fixture(autouse=True)
def _two_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    two_budgets(monkeypatch)


CHECKPOINTS = Path("runs/debug/meta_train")
KEEPING = ("--trainer.callbacks.init_args.filename={step}", "--trainer.callbacks.init_args.save_top_k=-1")
KEEPING += ("--model.optimization.schedule=constant",)


@pytest.fixture(scope="module")
def known(folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zoo whose statistics are measured once; tests must not change it."""
    return zoo_of(folders, tmp_path_factory.mktemp("known") / "zoo")


@pytest.fixture(scope="module")
def finished(root: Path, known: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of four steps on the known zoo left, and its checkpoints; tests must not change it."""
    place = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        two_budgets(patch)
        patch.setattr("sys.argv", ["train.py"])
        patch.chdir(place)
        fit(root, known, "whole", *KEEPING)
    return place


def last_weights(checkpoint: Path = CHECKPOINTS / "last.ckpt") -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True)["state_dict"]
    return state


IGNORED = pytest.mark.filterwarnings(
    "ignore:Checkpoint directory .* exists and is not empty",
    "ignore:Experiment logs directory .* exists and is not empty",
    "ignore:The dirpath has changed",
)


@IGNORED
@pytest.mark.usefixtures("here")
def test_a_run_leaves_a_generator_and_resumes_exactly(root: Path, known: Path, finished: Path) -> None:
    out, last = finished / "whole", CHECKPOINTS / "step=4.ckpt"
    whole = last_weights(finished / last)
    assert not any("teacher" in key for key in whole)
    assert bool(whole["network.heads.layer.weight"].any())  # it starts at zero, so it has learnt something
    card = json.loads((out / "config.json").read_text())["training"]
    assert card["teachers"] == {"train": ["one"], "validation": ["two"]}
    assert "val/validation_data_0" in card["curve"][0]
    assert card["curve"][0]["step"] == 2
    assert isinstance(load_generator(out), HypernetGenerator)

    half = fit(root, known, "half", *KEEPING, "--ckpt_path", str(finished / CHECKPOINTS / "step=2.ckpt"))
    resumed = last_weights(last)
    assert json.loads((half / "config.json").read_text())["training"]["curve"] == card["curve"]
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


@IGNORED
@pytest.mark.usefixtures("here")
def test_validating_on_its_own_measures_the_same_and_writes_nothing(
    root: Path, known: Path, finished: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In inference mode, where steps to come need gradients all the same."""
    shutil.copytree(finished / "whole", "network")
    before = {path.name: path.read_bytes() for path in Path("network").iterdir()}
    curve = json.loads(before["config.json"])["training"]["curve"]
    words = [
        "--config",
        str(root / "configs/debug/meta_train.yaml"),
        "--model.zoo",
        str(known),
        "--model.out",
        "network",
    ]
    for command in ("validate", "test"):
        caplog.clear()
        with patch.object(MetaTraining, "log_dict") as logged, caplog.at_level("INFO"):
            assert train.main([command, *words, "--ckpt_path", str(finished / CHECKPOINTS / "step=4.ckpt")]) == 0
        assert "step 4, val/" in caplog.text
        found = logged.call_args.args[0]
        assert found == pytest.approx({key: value for key, value in curve[-1].items() if key != "step"}, abs=1e-5)
    assert {path.name: path.read_bytes() for path in Path("network").iterdir()} == before


@pytest.mark.usefixtures("here")
def test_two_processes_average_the_gradients_of_their_own_episodes(
    root: Path, known: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real processes over gloo: one step of both is one step along the mean of what each rank alone would do."""
    command = [sys.executable, str(root / "train.py"), "fit", "--config", str(root / "configs/debug/meta_train.yaml")]
    two = ["--trainer.devices", "2", "--trainer.accelerator", "cpu", "--trainer.strategy", "ddp"]
    one_step = ["--trainer.max_steps=1", "--model.optimization.schedule=constant", "--trainer.limit_val_batches=0"]
    saved = ["--trainer.callbacks.init_args.every_n_train_steps", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    words = [*command, "--model.zoo", str(known), *two, *one_step, *saved]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "find_unused_parameters" not in done.stderr
    theirs = last_weights()

    torch.manual_seed(0)
    seed_everything(0, verbose=False)
    system = meta_throughput.system_of(root / "configs/debug/meta_train.yaml", known)
    system.setup("fit")
    losses = []
    with patch.object(system, "log_dict"):
        for rank in (0, 1):
            monkeypatch.setattr(MetaTraining, "global_rank", rank, raising=False)
            losses.append(system.training_step(0))
    assert float(losses[0].detach()) != float(losses[1].detach())  # each has its own episode
    (sum(losses) / 2).backward()
    torch.nn.utils.clip_grad_norm_(system.network.parameters(), 1.0)
    torch.optim.AdamW(system.network.parameters(), lr=1e-3, weight_decay=1e-2).step()
    ours = system.network.state_dict()
    for name, value in ours.items():
        torch.testing.assert_close(theirs[f"network.{name}"], value, rtol=1e-4, atol=2e-6)
    assert bool(theirs["network.heads.layer.weight"].any())  # zero before the step


def test_throughput_is_that_of_the_training_steps(root: Path, zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The parts are of the whole, nothing is trained or written but the row, and the functions are put back."""
    before = meta_training.meta_loss
    config = root / "configs" / "debug" / "meta_train.yaml"
    meta_throughput.main(["--zoo", str(zoo), "--config", str(config), "--steps", "3", "--out", "rows"])
    with Path("rows/meta_throughput.csv").open() as file:
        (row,) = csv.DictReader(file)
    shares = [float(row[f"share_{part}"]) for part in ("student", "generate", "backward")]
    assert all(share > 0 for share in shares)
    assert sum(shares) < 1
    assert (row["config"], row["teachers"]) == ("meta_train", "1")
    assert float(row["steps_per_second"]) > 0
    assert "steps a second on 1 teachers" in capsys.readouterr().out
    assert meta_training.meta_loss is before
    assert sorted(path.name for path in zoo.iterdir()) == ["one", "two", "zoo.csv"]


def test_validation_budgets_lie_within_what_can_be_learnt_on(known: Path) -> None:
    system = MetaTraining(known, Path("out"))
    system.setup("fit")
    case = system.members["train"][0].case
    assert not any(parameter.requires_grad for parameter in case.teacher.parameters())
    assert not any(name.startswith("members") for name, _ in system.named_parameters())
    for measured in (True, False):
        budgets = validation_budgets(case, measured)
        assert [b.unit for b in budgets] == [Unit.PARAMS] * 3 + [Unit.MACS]
        assert sorted(b.share for b in budgets[:3]) == [b.share for b in budgets[:3]]
        assert all(0 < b.share <= 0.9 for b in budgets)


def test_held_out_teachers_are_never_read(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even where their folders are there: neither weights nor images are asked for."""
    shutil.copytree(zoo / "one", zoo / "three")
    loaded: list[str] = []
    load = meta_training.load_model
    monkeypatch.setattr(meta_training, "load_model", lambda name: (loaded.append(Path(name).name), load(name))[1])
    system = MetaTraining(zoo, Path("out"), episodes=Episodes(calibration=32, refit_images=8))
    system.setup("fit")
    assert loaded == ["one", "two"]
    assert set(system.members) == {"train", "validation"}


@IGNORED
def test_one_left_out_is_judged_and_never_trained_on(root: Path, zoo: Path) -> None:
    """Whichever it is, the network ends the same, bit for bit; the latest is kept, and the curve has its columns."""
    add(zoo, "four", "train", 0.1)
    add(zoo, "five", "train", 0.2)
    ends, curves = [], []
    for name in ("four", "five"):
        words = ("--model.episodes.teachers", "[one]", "--model.episodes.leave_out", name)
        out = fit(root, zoo, f"without_{name}", *words)
        card = json.loads((out / "config.json").read_text())["training"]
        assert card["teachers"] == {"train": ["one"], "left_out": [name]}
        assert card["episodes"]["leave_out"] == name
        assert card["step"] == 4  # of the two validations the second
        columns = {key for row in card["curve"] for key in row if key.startswith("val/")}
        assert {
            "val/left_out_data_0",
            "val/left_out_free_0",
            "val/left_out_data_refit",
            "val/left_out_data_1",
        } < columns
        assert not any(key.startswith("val/validation") for key in columns)
        ends.append(last_weights())
        curves.append([row["val/left_out_free_0"] for row in card["curve"]])
        shutil.rmtree("runs")
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    assert bool(ends[0]["network.heads.layer.weight"].any())
    assert curves[0] != curves[1]


@IGNORED
def test_the_one_left_out_chooses_nothing(zoo: Path) -> None:
    """With a validation teacher that one chooses, whatever the score of the one left out."""
    add(zoo, "four", "train")
    episodes = Episodes(calibration=32, refit_images=8, leave_out="four")
    system = MetaTraining(zoo, Path("out"), episodes=episodes)
    system.setup("fit")
    assert {split: [m.case.name for m in members] for split, members in system.members.items()} == {
        "train": ["one"],
        "validation": ["two"],
        "left_out": ["four"],
    }
    fitting = {"state": Mock(fn=TrainerFn.FITTING), "sanity_checking": False, "fast_dev_run": False}
    system._trainer = Mock(spec=Trainer, is_global_zero=True, **fitting)
    with patch.object(system, "log_dict"), patch.object(system, "write") as written:
        for ours, theirs, best, count in ((0.5, 0.0, 0.5, 1), (0.4, 9.0, 0.4, 2), (0.6, -9.0, 0.4, 2)):
            row = {"step": 1.0, "val/validation_data_0": ours, "val/left_out_data_0": theirs}
            system.judged(row, score_of(row))
            assert (system.best, written.call_count) == (best, count)
        alone = {"step": 2.0, "val/left_out_data_0": 9.0}
        for count in (3, 4):  # nobody chooses: the latest is kept
            system.judged(alone, score_of(alone))
            assert written.call_count == count


@IGNORED
def test_what_a_teacher_draws_follows_from_seed_and_step(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as of dropout, in the steps to come: a resumed run has to see the same, and others are not disturbed."""
    system = MetaTraining(zoo, Path("out"), episodes=Episodes(calibration=32, refit_images=8, look_ahead=(0,)))
    system.setup("fit")
    monkeypatch.setattr(meta_training, "meta_loss", lambda *_, **__: (torch.rand(()), 0.0))
    system._trainer = Mock(spec=Trainer, global_rank=0, global_step=0)
    losses = list[float]()
    with patch.object(system, "log_dict"):
        for step, seed in ((3, 0), (3, 1), (4, 0)):
            torch.manual_seed(seed)
            losses.append(float(system.training_step(step).detach()))
            after = torch.rand(())
            torch.manual_seed(seed)
            assert torch.equal(after, torch.rand(()))
    assert losses[0] == losses[1] != losses[2]


@IGNORED
def test_the_loss_that_is_logged_is_that_of_all_processes(known: Path, tmp_path: Path) -> None:
    """But the KL, as each draws what kind of a student it is of."""
    system = MetaTraining(known, tmp_path / "out", episodes=Episodes(images=8, look_ahead=(0,), refit=0.0, free=0.0))
    run = quiet(max_steps=1, limit_val_batches=0)
    with patch.object(system, "log") as logged, pytest.warns(UserWarning, match="nothing was validated"):
        run.fit(system, EpisodeModule())
    synced = {call.kwargs["name"]: call.kwargs["sync_dist"] for call in logged.call_args_list}
    assert synced == {"train/loss": True, "train/kl_data_0": False}
