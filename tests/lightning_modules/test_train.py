"""train.py from the outside: what it runs, where its outputs go, and what it says about bad input."""

import csv
import json
from pathlib import Path

import pytest
import torch
from jsonargparse import Namespace
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy

import train
from hypercompress.errors import HypercompressError
from hypercompress.models import load_model
from tests.lightning_modules.runs import Folders, config, start

IGNORED = pytest.mark.filterwarnings(
    "ignore:Checkpoint directory .* exists and is not empty",  # the second run of a config
    "ignore:Experiment logs directory .* exists and is not empty",
)


@IGNORED
def test_a_teacher_is_trained_again_validated_and_resumed(root: Path, here: Path) -> None:
    arguments = ["--config", config(root, "teacher")]
    assert train.main(["fit", *arguments]) == 0
    assert train.main(["fit", *arguments]) == 0  # a second run clashes with nothing
    folder = here / "runs" / "debug" / "teacher"
    first, architecture = load_model(str(folder / "teacher"))
    assert architecture is not None
    assert architecture.pretrained_cfg["mean"] == [0.286]
    checkpoint = str(folder / "last.ckpt")
    before = torch.load(checkpoint, weights_only=True)["global_step"]
    assert train.main(["fit", *arguments, "--trainer.max_epochs", "3", "--ckpt_path", checkpoint]) == 0
    assert torch.load(checkpoint, weights_only=True)["global_step"] == before * 3 // 2
    second, _ = load_model(str(folder / "teacher"))
    weights = first.state_dict()
    assert any(not torch.equal(value, weights[name]) for name, value in second.state_dict().items())
    assert train.main(["validate", *arguments, "--ckpt_path", checkpoint]) == 0
    assert train.main(["test", *arguments, "--ckpt_path", checkpoint]) == 0


@IGNORED
def test_distil_then_fine_tune(root: Path, here: Path, folders: Folders) -> None:
    assert train.main(["fit", "--config", config(root, "distill"), *start(folders)]) == 0
    distilled = here / "runs" / "debug" / "distill"
    teacher = ["--model.teacher.model", str(folders[0])]
    assert train.main(["fit", "--config", config(root, "finetune"), *teacher]) == 0
    report = json.loads((here / "runs/debug/finetune/student/report.json").read_text())
    assert report["distilled_steps"] == 16
    with (distilled / "logs" / "version_0" / "metrics.csv").open(newline="") as file:
        columns = set(next(csv.reader(file)))
    assert {"train/loss", "train/kl", "train/features", "val/kl", "val/agreement", "val/top1_student"} <= columns


@IGNORED
def test_a_run_goes_to_a_folder_of_its_own(root: Path, here: Path, folders: Folders) -> None:
    """Student, checkpoint and logs; the config beside these says where they are."""
    arguments = ["fit", "--config", config(root, "distill"), *start(folders)]
    assert train.main([*arguments, "--run", "elsewhere"]) == 0
    assert {path.name for path in here.iterdir()} == {"elsewhere"}
    assert {path.name for path in (here / "elsewhere").iterdir()} == {"student", "last.ckpt", "logs"}
    kept = here / "elsewhere" / "logs" / "version_0" / "config.yaml"
    first = (here / "elsewhere" / "student" / "config.json").read_bytes()
    (here / "elsewhere" / "student").rename(here / "before")
    assert train.main(["fit", "--config", str(kept)]) == 0
    assert (here / "elsewhere" / "student" / "config.json").read_bytes() == first
    assert {path.name for path in here.iterdir()} == {"elsewhere", "before"}


@pytest.mark.parametrize("root", ["runs/a", "runs/a/", "./runs/a", "."])
def test_outputs_are_moved_and_nothing_else(root: str, here: Path) -> None:
    inside = str(here / "runs" / "a" / "logs")
    config = Namespace(
        default_root_dir=root,
        accelerator="auto",
        logger=[Namespace(class_path="runs.Logger", init_args=Namespace(save_dir=inside, name="runs"))],
        callbacks=[{"init_args": {"folder": Path("runs/a/student"), "filename": "last"}}],
        out=None,
    )
    train.move_outputs(config, Path(root), Path("/t"))
    below = Path("/t/runs/a" if root == "." else "/t")
    assert config.default_root_dir == "/t"
    assert config.accelerator == "auto"
    assert config.logger[0] == Namespace(
        class_path="runs.Logger", init_args=Namespace(save_dir=str(below / "logs"), name="runs")
    )
    assert config.callbacks == [{"init_args": {"folder": below / "student", "filename": "last"}}]
    assert config.out is None


def test_an_output_elsewhere_is_named() -> None:
    with pytest.raises(HypercompressError, match=r"received --run /t with out runs/ab, .* below .* runs/a; expected"):
        train.move_outputs(Namespace(init_args=Namespace(out="runs/ab")), Path("runs/a"), Path("/t"))


@pytest.mark.parametrize("name", ["meta_train", "transfer"])
def test_a_trained_network_goes_there_too(
    name: str, root: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As far as the trainer, which comes after all paths are known."""
    seen = {}

    def note(self: train.CLI, **_: object) -> None:
        assert self.subcommand is not None
        seen.update(vars(self.config[self.subcommand].model.init_args))
        raise HypercompressError("seen")

    monkeypatch.setattr(train.CLI, "instantiate_classes", note)
    assert train.main(["fit", "--config", config(root, name), "--run", "elsewhere"]) == 2
    assert Path(seen["out"]).parent == Path("elsewhere")
    assert not any("elsewhere" in str(value) for key, value in seen.items() if key != "out")


def test_a_folder_of_its_own_needs_a_root(
    root: Path, here: Path, folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", "--config", config(root, "distill"), *start(folders)]
    for asked in (["--run", "elsewhere", "--trainer.default_root_dir", "null"], ["--run", ""]):
        assert train.main([*words, *asked]) == 2
        assert "error: received --run '" in capsys.readouterr().err.splitlines()[-1]
    assert train.main([*words, "--run", "elsewhere", "--trainer.default_root_dir", "other"]) == 2
    assert "which is not below trainer.default_root_dir other" in capsys.readouterr().err.splitlines()[-1]
    assert list(here.iterdir()) == []


def test_commands_are_fit_validate_and_test(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train.main(["--help"])
    out = capsys.readouterr().out
    assert "{fit,validate,test}" in out


def test_bad_input_is_one_line_and_exit_code_2(
    root: Path, here: Path, folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["fit", "--config", config(root, "distill"), *start(folders), "--data.data", str(here / "none")]
    assert train.main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: received data")
    assert not (here / "runs" / "debug" / "distill" / "student").exists()


def test_a_setting_that_cannot_be_is_refused_before_anything_runs(
    root: Path, here: Path, folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["fit", "--config", config(root, "distill"), *start(folders), "--model.losses.temperature", "0"]
    assert train.main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: received logits 1, features 0.1, labels 0, temperature 0; expected")
    assert list(here.iterdir()) == []


def test_a_folder_that_is_not_there(root: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["fit", "--config", config(root, "distill")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: received runs/debug/student without config.json")
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read (FileNotFoundError: "),
        (b"nothing that torch wrote", "cannot be read ("),
        ({"weight": torch.zeros(2)}, "is no checkpoint of a run; expected one that train.py wrote"),
    ],
    ids=["missing", "damaged", "weights alone"],
)
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_checkpoint_that_is_none_is_one_line(
    command: str, content: object, reason: str, root: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if isinstance(content, bytes):
        Path("some.ckpt").write_bytes(content)
    elif content is not None:
        torch.save(content, "some.ckpt")
    before = list(here.iterdir())
    assert train.main([command, "--config", config(root, "teacher"), "--ckpt_path", "some.ckpt"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: received --ckpt_path some.ckpt, which ")
    assert reason in error
    assert list(here.iterdir()) == before


def test_weights_of_a_distillation_are_said_to_be_for_its_student_and_teacher(
    root: Path, here: Path, folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"conv.weight": torch.ones(1)}, "some.pth")
    words = ["fit", "--config", config(root, "distill"), *start(folders), "--ckpt_path", "some.pth"]
    assert train.main(words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith("for --model.student, the teacher's weights are for --model.teacher.checkpoint")


def test_a_root_that_nothing_lies_below_is_warned_of(root: Path, here: Path, folders: Folders) -> None:
    """Outputs of a config are where it says; ``--run`` moves them."""
    words = ["fit", "--config", config(root, "distill"), *start(folders), "--data.data", "missing"]
    with pytest.warns(UserWarning, match=r"default_root_dir other holds none .*runs/debug/distill/student.*; --run"):
        assert train.main([*words, "--trainer.default_root_dir", "other"]) == 2
    for more in ([], ["--trainer.default_root_dir", "null"], ["--trainer.default_root_dir", "runs"]):
        assert train.main([*words, *more]) == 2, "and no warning"


@pytest.mark.parametrize("name", ["LearningRateFinder", "BackboneFinetuning", "BatchSizeFinder"])
def test_callbacks_for_systems_of_another_kind_are_refused(
    name: str, root: Path, here: Path, folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--trainer.callbacks+", f"lightning.pytorch.callbacks.{name}"]
    assert train.main(["fit", "--config", config(root, "distill"), *start(folders), *more]) == 2
    does = "changes" if name == "BatchSizeFinder" else "asks"
    assert f"error: received the callback {name}, which {does}" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        (("--trainer.accelerator", "none_such"), "Lightning refuses (You selected an invalid accelerator name"),
        (("--trainer.strategy", "none_such"), "Lightning refuses (You selected an invalid strategy name"),
        (("--trainer.strategy", "fsdp"), "Lightning refuses (The strategy `fsdp` requires a GPU"),
    ],
)
def test_what_lightning_refuses_is_one_line(
    setting: tuple[str, str], reason: str, root: Path, here: Path, folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main(["fit", "--config", config(root, "distill"), *start(folders), *setting]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: received settings of the trainer that ")
    assert reason in error
    assert list(here.iterdir()) == []


def test_networks_are_not_split_over_processes(
    root: Path, here: Path, folders: Folders, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lightning makes this strategy on cards alone."""

    split = (FSDPStrategy(accelerator=CPUAccelerator()), DeepSpeedStrategy.__new__(DeepSpeedStrategy))
    split[1].accelerator = CPUAccelerator()
    for strategy in split:
        monkeypatch.setattr(Trainer, "strategy", strategy)
        assert train.main(["fit", "--config", config(root, "distill"), *start(folders)]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith(f"error: received the strategy {type(strategy).__name__}; expected auto or ddp")
    assert list(here.iterdir()) == []


def test_other_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("a mistake of ours")

    monkeypatch.setattr(train, "CLI", broken)
    with pytest.raises(KeyError, match="a mistake of ours"):
        train.main(["fit"])
