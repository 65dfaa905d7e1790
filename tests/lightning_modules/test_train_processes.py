"""train.py in processes of its own: two that keep in step, and one that is told to stop."""

import contextlib
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hypercompress import from_pretrained
from tests.lightning_modules.runs import Folders, config, start


def launch(root: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``python train.py ARGUMENTS`` with ``cwd`` as the place of its outputs."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, str(root / "train.py"), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_and_its_own_exit_code(
    number: signal.Signals, root: Path, here: Path, folders: Folders
) -> None:
    """As a scheduler, or Ctrl-C, stops a run; 0 would say that it has ended."""
    words = ["fit", "--config", config(root, "distill"), *start(folders), "--trainer.max_steps", "100000"]
    words += ["--trainer.max_epochs", "-1", "--trainer.limit_val_batches", "0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command, checkpoint = [sys.executable, str(root / "train.py"), *words], here / "runs/debug/distill/last.ckpt"
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored, and so inherited, in the background of a shell
    process = subprocess.Popen(command, cwd=here, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    signal.signal(signal.SIGINT, before)
    while process.poll() is None and not checkpoint.exists():
        time.sleep(0.1)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number, said.decode()[-3000:]
    how = r"after step (\d+): go on with the same command and --ckpt_path (\S+)"
    found = re.search(rf"stopped by {number.name} {how}", said.decode())
    assert found is not None
    assert Path(found[2]) == checkpoint
    assert torch.load(checkpoint, weights_only=True)["global_step"] == int(found[1])
    assert not (here / "runs/debug/distill/student").exists()


def stopped_as_a_group(root: Path, here: Path, words: list[str], checkpoint: Path) -> int:
    """The step after which a run ends, all of whose processes get SIGTERM once it has a checkpoint."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command, log = [sys.executable, str(root / "train.py"), *words], here / "said"
    with log.open("w") as said:
        process = subprocess.Popen(command, cwd=here, env=environment, stdout=said, stderr=said, start_new_session=True)
        try:
            while process.poll() is None and not checkpoint.exists():
                time.sleep(0.1)
            os.killpg(process.pid, signal.SIGTERM)
            assert process.wait(timeout=60) == 143, log.read_text()[-3000:]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    found = re.search(r"stopped by SIGTERM after step (\d+)", log.read_text())
    assert found is not None
    return int(found[1])


TWO = ["--trainer.devices", "2", "--trainer.accelerator", "cpu", "--trainer.strategy", "ddp"]


def test_two_processes_stop_together_after_the_same_whole_step(root: Path, here: Path, folders: Folders) -> None:
    """A scheduler signals all processes of a group at once; the middle of an accumulated step is no place to stop."""
    words = ["fit", "--config", config(root, "distill"), *start(folders), *TWO, "--trainer.max_steps", "100000"]
    words += ["--trainer.max_epochs", "-1", "--trainer.limit_val_batches", "0"]
    words += ["--trainer.accumulate_grad_batches", "2"]
    checkpoint = here / "runs/debug/distill/last.ckpt"
    step = stopped_as_a_group(root, here, words, checkpoint)
    content = torch.load(checkpoint, weights_only=True)
    batches = content["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["completed"]
    assert (content["global_step"], batches) == (step, 2 * step)


def test_processes_that_prepare_images_do_not_end_before_the_run(root: Path, here: Path) -> None:
    """They are in the group that a scheduler signals; without them there is no next batch, and no checkpoint."""
    words = ["fit", "--config", config(root, "teacher"), "--data.augment", "crop", "--data.workers", "2"]
    words += ["--trainer.max_steps", "100000", "--trainer.max_epochs", "-1", "--trainer.limit_val_batches", "0"]
    checkpoint = here / "runs/debug/teacher/last.ckpt"
    step = stopped_as_a_group(root, here, words, checkpoint)
    assert torch.load(checkpoint, weights_only=True)["global_step"] == step


@pytest.mark.parametrize("name", ["distill", "finetune"])
def test_two_processes_end_with_equal_weights(root: Path, here: Path, folders: Folders, name: str) -> None:
    """Real processes over gloo, without find_unused_parameters: the frozen teacher is outside of what DDP wraps.

    One has an image more to validate on than a batch of the other, which neither waits for nor counts twice.
    """
    odd = ["--data.val_limit", "33"]
    done = launch(root, here, "fit", "--config", config(root, name), *start(folders), *TWO, *odd)
    assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"equal weights on 2 ranks: checksum -?\d", done.stderr), done.stderr[-3000:]
    assert "find_unused_parameters" not in done.stderr
    folder = here / "runs" / "debug" / name
    student, before = from_pretrained(folder / "student"), from_pretrained(folders[1])
    weights = dict(before.named_parameters())
    assert all(bool(torch.isfinite(value).all()) for value in student.state_dict().values())
    assert any(not torch.equal(value, weights[key]) for key, value in student.named_parameters())
    report = json.loads((folder / "student" / "report.json").read_text())
    assert report["distilled_steps"] == 8
    assert report["fidelity"]["images"] == 33  # all of them once, not a rank's share
    with (folder / "logs/version_0/metrics.csv").open(newline="") as file:
        logged = [row for row in csv.DictReader(file) if row["val/kl"]][-1]
    for key in ("kl", "agreement"):
        assert float(logged[f"val/{key}"]) == pytest.approx(report["fidelity"][key], abs=1e-5)
    content = torch.load(folder / "last.ckpt", weights_only=True)["state_dict"]
    assert set(content) == {f"network.{key}" for key in student.model.state_dict()}


def test_two_processes_go_on_from_a_checkpoint_exactly(root: Path, here: Path, folders: Folders) -> None:
    """Step 3 of 8 is in the middle of the first epoch, whose four steps show each rank a half of the images."""
    saving = [
        "--trainer.callbacks+",
        "lightning.pytorch.callbacks.ModelCheckpoint",
        "--trainer.callbacks.save_top_k=-1",
    ]
    saving += ["--trainer.callbacks.dirpath=steps", "--trainer.callbacks.filename={step}"]
    saving += ["--trainer.callbacks.every_n_train_steps=3"]
    fit = ["fit", "--config", config(root, "distill"), *start(folders), *TWO, *saving]
    for name, more in (("whole", []), ("resumed", ["--ckpt_path", str(here / "whole" / "steps" / "step=3.ckpt")])):
        (here / name).mkdir()
        done = launch(root, here / name, *fit, *more)
        assert done.returncode == 0, done.stderr[-3000:]
    students = [from_pretrained(here / name / "runs/debug/distill/student") for name in ("whole", "resumed")]
    whole, resumed = (student.model.state_dict() for student in students)
    assert students[1].report["distilled_steps"] == 8
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())


def test_two_processes_stop_together_when_the_loss_is_not_finite(root: Path, here: Path, folders: Folders) -> None:
    rate = ["--model.optimization.lr", "1e30"]
    done = launch(root, here, "fit", "--config", config(root, "distill"), *start(folders), *TWO, *rate)
    assert done.returncode != 0
    assert re.search(r"error: received a loss of (nan|inf) at step [1-7]", done.stderr), done.stderr[-3000:]
    assert not (here / "runs" / "debug" / "distill" / "student").exists()
