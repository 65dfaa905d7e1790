"""What a run that failed says in one line, and what keeps its traceback."""

import errno
import importlib
import signal
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, Dataset

import train
from hypercompress.errors import ArtefactError, DataError
from lightning_modules.failing import told
from tests.lightning_modules.runs import Folders, config, start

IGNORED = pytest.mark.filterwarnings(
    "ignore:Checkpoint directory .* exists and is not empty", "ignore:Experiment logs directory .* exists"
)


class Broken(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> torch.Tensor:
        raise DataError("received a broken image; expected\none that opens; remove it")


def test_a_workers_error_is_told_without_its_traceback() -> None:
    with pytest.raises(DataError, match="Original Traceback") as raised:
        next(iter(DataLoader(Broken(), num_workers=1)))
    assert told(raised.value) == "received a broken image; expected\none that opens; remove it"


@pytest.mark.parametrize(
    ("said", "told_as"),
    [
        ("pass --input-size 3 28 28", "pass --data.inputs.input_size [3, 28, 28]"),
        ("pass --input-size C H W", "pass --data.inputs.input_size [C, H, W]"),
        ("pass --mean V; also pass --std V V V", "pass --data.inputs.mean [V]; also pass --data.inputs.std [V, V, V]"),
        ("pass --mean --std", "pass --data.inputs.mean --data.inputs.std"),
        ("change --model-args (img_size) or --input-size", "change --model.model_args (img_size)"),
        ("pass --checkpoint FILE or --no-pretrained", "pass --model.checkpoint FILE or --model.pretrained false"),
        ("name --model.teacher.checkpoint", "name --model.teacher.checkpoint"),
        ("check --ckpt_path, --model.teacher.mean", "check --ckpt_path, --model.teacher.mean"),
    ],
)
def test_options_are_named_as_they_are_here(said: str, told_as: str) -> None:
    assert told(DataError(f"received {said}")) == f"received {told_as}"


def test_a_size_of_other_channels_is_told_so(
    root: Path, here: Path, folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["fit", "--config", config(root, "distill"), *start(folders), "--data.inputs.input_size", "[3, 28, 28]"]
    assert train.main(words) == 2
    assert capsys.readouterr().err.rstrip().endswith("pass --data.inputs.input_size [1, 28, 28]")


def test_what_nobody_set_keeps_its_traceback() -> None:
    assert told(KeyError("a mistake of ours")) is None
    assert told(ValueError("a mistake of ours")) is None
    assert told(FileNotFoundError(errno.ENOENT, "no such file")) is None
    wrapped = ValueError("a page of jsonargparse's")
    wrapped.__cause__ = MisconfigurationException("swa_epoch_start should be")
    assert str(told(wrapped)).startswith("received settings of the trainer that Lightning refuses (swa_epoch_start")


def test_the_latest_checkpoint_is_told_where_the_result_cannot_be_written() -> None:
    full, point = OSError(errno.ENOSPC, "No space left on device"), Path("last.ckpt")
    assert str(told(full)).startswith("received [Errno 28] No space left on device while the run wrote its outputs;")
    assert "ckpt_path" not in str(told(full))
    for error in (full, ArtefactError("received a folder; expected room; make some")):
        assert str(told(error, point)).endswith("; go on with the same command and --ckpt_path last.ckpt")
    assert "ckpt_path" not in str(told(DataError("received nothing"), point))


@IGNORED
@pytest.mark.parametrize(
    ("name", "setting", "reason"),
    [
        ("distill", ("--trainer.limit_val_batches", "0.1"), "You requested to check 0.1 of the `val_dataloader`"),
        ("distill", ("--ckpt_path", "best"), '`.fit(ckpt_path="best")` is set but'),
        ("teacher", ("--trainer.val_check_interval", "200"), "`val_check_interval` (200) must be less than or equal"),
    ],
)
def test_settings_that_lightning_refuses_as_it_runs(
    name: str,
    setting: tuple[str, str],
    reason: str,
    root: Path,
    here: Path,
    folders: Folders,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = start(folders) if name == "distill" else []
    assert train.main(["fit", "--config", config(root, name), *more, *setting]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: received settings of the trainer that Lightning refuses ({reason}")


@pytest.mark.parametrize("path", ["C:/x.ckpt", "a:b.ckpt"])
def test_a_colon_makes_no_address(path: str, root: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["fit", "--config", config(root, "teacher"), "--ckpt_path", path]) == 2
    assert f"received --ckpt_path {path}, which cannot be read" in capsys.readouterr().err.splitlines()[-1]


def test_outputs_that_cannot_be_written_are_refused_before_anything_runs(
    root: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("in the way")
    assert train.main(["fit", "--config", config(root, "teacher"), "--run", "file/x"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: received the output file/x")
    assert "where nothing can be written" in error
    assert [path.name for path in here.iterdir()] == ["file"]


@IGNORED
def test_a_disk_that_is_full_names_the_checkpoint_before(
    root: Path, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save = Trainer.save_checkpoint

    def full(self: Trainer, *arguments: object, **options: object) -> None:
        if self.global_step > 16:  # of the second epoch
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "save_checkpoint", full)
    assert train.main(["fit", "--config", config(root, "teacher")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: received [Errno 28] No space left on device while the run wrote its outputs")
    checkpoint = Path(error.rpartition("--ckpt_path ")[2])
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 16


def test_lightnings_own_optimiser_settings_are_unknown(
    root: Path, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They would pass by what every system does, or end in an error of Lightning's."""
    for option in ("--optimizer", "--lr_scheduler"):
        with pytest.raises(SystemExit):
            train.main(["fit", "--config", config(root, "teacher"), option, "Adam"])
        assert f"received {option}; expected an option of train.py fit; " in capsys.readouterr().err


@pytest.mark.parametrize("lightnings", [False, True])
def test_ctrl_c_ahead_of_the_first_step(lightnings: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            if lightnings:
                raise SystemExit(1)  # noqa: B904  (as Lightning does)
            raise

    monkeypatch.setattr(train, "CLI", stopped)
    assert train.main(["fit"]) == 128 + signal.SIGINT


def words(root: Path, folders: Folders, command: str, *more: str) -> list[str]:
    return [command, "--config", config(root, "distill"), *start(folders), "--trainer.max_steps", "1", *more]


def test_a_module_that_a_callback_needs_is_named_in_one_line(
    root: Path, here: Path, folders: Folders, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning.pytorch.callbacks.device_stats_monitor._PSUTIL_AVAILABLE", False)
    monitor = ["--trainer.callbacks+", "lightning.pytorch.callbacks.DeviceStatsMonitor"]
    assert train.main(words(root, folders, "fit", *monitor)) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        "error: received settings of the trainer that Lightning refuses (`DeviceStatsMonitor` cannot"
    )
    with pytest.raises(ModuleNotFoundError) as raised:
        importlib.import_module("none_such")
    assert told(raised.value) is None


def test_weights_alone_are_validated_and_not_gone_on_with(
    root: Path, here: Path, folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    saving = ["--trainer.callbacks.init_args.save_weights_only", "true"]
    saving += ["--trainer.callbacks.init_args.every_n_train_steps", "1"]
    assert train.main(words(root, folders, "fit", *saving)) == 0
    point = "runs/debug/distill/last.ckpt"
    assert train.main(words(root, folders, "validate", "--ckpt_path", point)) == 0
    assert train.main(words(root, folders, "fit", "--ckpt_path", point)) == 2
    said = f"error: received --ckpt_path {point}, which was saved with save_weights_only; expected one with"
    assert capsys.readouterr().err.splitlines()[-1].startswith(said)


def test_a_default_that_is_one_of_several_words(root: Path, here: Path, folders: Folders) -> None:
    """As the interval of a timer, which the config beside the logs has to name."""
    timer = ["--trainer.callbacks+", "lightning.pytorch.callbacks.Timer"]
    assert train.main(words(root, folders, "fit", *timer)) == 0
    assert "interval: step" in Path("runs/debug/distill/logs/version_0/config.yaml").read_text()


@IGNORED
def test_a_last_checkpoint_that_is_not_there(
    root: Path, here: Path, folders: Folders, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The start is no result; a fit that is started again and again begins there."""
    last = ["--ckpt_path", "last"]
    for command in ("validate", "test"):
        assert train.main(words(root, folders, command, *last)) == 2
        assert "error: received --ckpt_path last, but" in capsys.readouterr().err.splitlines()[-1]
    saving = ["--trainer.callbacks.init_args.every_n_train_steps", "1"]
    with caplog.at_level("INFO"):
        assert train.main(words(root, folders, "fit", *last, *saving)) == 0
        assert train.main(words(root, folders, "fit", *last, *saving)) == 0
    assert caplog.messages.count("--ckpt_path last: there is none yet, so the run begins anew") == 1
    assert train.main(words(root, folders, "validate", *last, *saving)) == 0
