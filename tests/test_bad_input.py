"""Every kind of bad input: exit code 2, one clear line, nothing half-written. Each case names what a user did."""

import errno
import inspect
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

import hypercompress
from hypercompress import Budget
from hypercompress.cli import main
from hypercompress.errors import BudgetError, NonFiniteError
from hypercompress.specs import Unit, require_budget
from hypercompress.specs.budget import require_share

ARGS = '{"num_classes": 10, "in_chans": 1}'
SIZE = ("--input-size", "1", "32", "32", "--mean", "0.286", "--std", "0.353")
SVD = ("--params", "0.5", "--generator", "svd")

Refused = Callable[..., str]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """The networks are tiny: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run a command that must fail; its one line."""

    def call(*words: object) -> str:
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        lines = [line for line in err.splitlines() if not line.startswith("warning: ")]
        assert code == 2, out
        assert len(lines) == 1, err
        assert lines[0].startswith("error: received ")
        assert lines[0].count(";") >= 1  # what was received; what to do
        return lines[0]

    return call


def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=10, in_chans=1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "weights.safetensors"
    save_file(network().state_dict(), path)
    return path


def generate(out: Path, checkpoint: Path, *words: object) -> tuple[object, ...]:
    return ("generate", "test_resnet", out, "--checkpoint", checkpoint, "--model-args", ARGS, *words)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def old(weights: Path, tmp_path: Path) -> Path:
    """A student that is there already."""
    assert main([str(word) for word in generate(tmp_path / "student", weights, *SVD)]) == 0
    return tmp_path / "student"


def gradient(folder: Path, count: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        Image.fromarray(np.full((16, 16), 20 * index, dtype=np.uint8)).save(folder / f"{index}.png")


def test_an_unknown_model_name(refused: Refused, tmp_path: Path) -> None:
    line = refused("generate", "test_resnt", tmp_path / "s", "--no-pretrained", *SVD)
    assert "'test_resnt'" in line
    assert "did you mean test_resnet" in line


def test_a_fault_is_told_once(refused: Refused) -> None:
    for against in ((), ("--against", "resnet51_of_mine")):
        assert refused("evaluate", "resnet51_of_mine", "--data", "fashion_mnist_mini", *against).count("received") == 1


@pytest.mark.parametrize("there", [True, False])
def test_a_folder_that_is_no_student(refused: Refused, tmp_path: Path, there: bool) -> None:
    if there:
        (tmp_path / "folder").mkdir()
    line = refused("evaluate", tmp_path / "folder", "--data", "fashion_mnist_mini")
    assert ("no student folder" if there else "does not exist") in line


def test_a_checkpoint_that_does_not_fit(refused: Refused, tmp_path: Path) -> None:
    state = network().state_dict()
    names = list(state)
    for name in names[:2]:
        del state[name]
    state["head.extra.weight"] = state["neck.bias"] = torch.zeros(3)
    state["fc.weight"] = torch.zeros(7, state["fc.weight"].shape[1])
    torch.save({"state_dict": state}, tmp_path / "other.pth")
    line = refused(*generate(tmp_path / "s", tmp_path / "other.pth", *SVD))
    for part in (f"2 missing: {', '.join(names[:2])}", "2 unexpected: head.extra.weight, neck.bias", "fc.weight [7, "):
        assert part in line


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
@pytest.mark.parametrize("how", ["noise", "truncated", "empty"])
def test_a_corrupt_checkpoint(refused: Refused, tmp_path: Path, suffix: str, how: str) -> None:
    path = tmp_path / f"weights{suffix}"
    state = network().state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    whole = path.read_bytes()
    path.write_bytes({"noise": bytes(range(256)) * 40, "truncated": whole[: len(whole) // 2], "empty": b""}[how])
    line = refused(*generate(tmp_path / "s", path, *SVD))
    assert str(path) in line
    assert "Traceback" not in line
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_damaged_student(refused: Refused, old: Path, name: str) -> None:
    data = (old / name).read_bytes()
    (old / name).write_bytes(data[: len(data) // 2])
    assert str(old) in refused("evaluate", old, "--data", "fashion_mnist_mini")


@pytest.mark.parametrize("report", [[1], {"transfer": 5}, {"transfer": {}}, {"layers": 5}, {"teacher": 3}], ids=str)
def test_a_damaged_report(refused: Refused, old: Path, report: object) -> None:
    (old / "report.json").write_text(json.dumps(report))
    assert "report.json that is no report" in refused("report", old)
    if report == {"transfer": 5}:
        assert "report.json that is no report" in refused("evaluate", old, "--data", "fashion_mnist_mini")


class Bomb:
    """Unpickling this creates a file: the harmless stand-in for any code."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("raw", [True, False])
def test_a_pickle_that_would_run_code(refused: Refused, tmp_path: Path, raw: bool) -> None:
    path, crater = tmp_path / "weights.pth", tmp_path / "crater"
    if raw:
        path.write_bytes(pickle.dumps({"state_dict": Bomb(crater)}))
    else:
        torch.save({"state_dict": {"fc.weight": Bomb(crater)}}, path)
    line = refused(*generate(tmp_path / "s", path, *SVD))
    assert str(path) in line
    assert "run code" in line
    assert not crater.exists()
    pickle.loads(pickle.dumps(Bomb(crater)))  # noqa: S301 - our own bomb: it does go off elsewhere
    assert crater.exists()


def test_an_empty_image_folder(refused: Refused, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "photos" / "cats").mkdir(parents=True)
    line = refused(*generate(tmp_path / "s", weights, *SVD, *SIZE, "--data", tmp_path / "photos"))
    assert f"{tmp_path / 'photos'}, which holds no images" in line


def test_unreadable_images_are_named_and_counted(
    capsys: pytest.CaptureFixture[str], weights: Path, tmp_path: Path
) -> None:
    photos = tmp_path / "photos"
    gradient(photos, 9)
    (photos / "broken.png").write_bytes((photos / "3.png").read_bytes()[:40])
    (photos / "text.jpg").write_text("no image")
    words = generate(tmp_path / "s", weights, *SVD, *SIZE, "--data", photos)
    assert main([str(word) for word in words]) == 0
    out, err = capsys.readouterr()
    assert err == f"warning: {photos}: skipped 2 of 11 images: broken.png, text.jpg\n"
    assert "of 9 images" in out
    words = ("evaluate", tmp_path / "s", "--data", photos, "--against", tmp_path / "s", "--json")
    assert main([str(word) for word in words]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["images"] == 9
    assert err.startswith("warning: ")


def test_no_readable_image_is_left(refused: Refused, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("a.png", "b.jpg"):
        (tmp_path / "photos" / name).write_text("no image")
    line = refused(*generate(tmp_path / "s", weights, *SVD, *SIZE, "--data", tmp_path / "photos"))
    assert "none of 2 images can be read: a.png, b.jpg" in line


def test_too_few_images(refused: Refused, weights: Path, tmp_path: Path) -> None:
    gradient(tmp_path / "photos", 5)
    line = refused(*generate(tmp_path / "s", weights, *SVD, *SIZE, "--data", tmp_path / "photos"))
    assert "5 calibration images; expected at least 6" in line


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(refused: Refused, tmp_path: Path, value: float) -> None:
    state = network().state_dict()
    state["fc.bias"][3] = value
    save_file(state, tmp_path / "bad.safetensors")
    line = refused(*generate(tmp_path / "s", tmp_path / "bad.safetensors", *SVD))
    assert "NaN or infinity in fc.bias" in line


@pytest.mark.parametrize("place", [0, 1, 5])  # held out to select and to confirm, and in the statistics
def test_calibration_images_that_are_no_numbers(place: int) -> None:
    batches = [torch.rand(4, 1, 32, 32) for _ in range(8)]
    batches[place][2, 0, 7, 7] = float("nan")
    with pytest.raises(NonFiniteError, match="expected finite values; check the calibration data"):
        hypercompress.compress(network(), Budget(params=0.5), batches, "kfac")


@pytest.mark.parametrize("option", ["--params", "--macs"])
@pytest.mark.parametrize("share", ["0", "1.5", "-0.2", "nan", "inf"])
def test_a_budget_out_of_range(refused: Refused, weights: Path, tmp_path: Path, option: str, share: str) -> None:
    line = refused(*generate(tmp_path / "s", weights, option, share, "--generator", "svd"))
    assert f"received a {option[2:]} budget of {float(share):g}; expected a share of the teacher above 0" in line


@pytest.mark.parametrize("share", ["0.5", True, torch.tensor(0.5), [0.5]])
def test_a_budget_that_is_no_number(share: object) -> None:
    with pytest.raises(BudgetError, match=re.escape(f"received a macs budget of {share!r}; expected a share of the")):
        require_share(Unit.MACS, share)  # what Budget calls; the tests' own type checks come before it


@pytest.mark.parametrize("share", [np.float32(0.5), np.float64(0.5), Fraction(1, 2)])
def test_a_budget_in_a_number_of_another_kind_is_kept_as_a_float(share: Any) -> None:
    budget = object.__new__(Budget)  # without the tests' own type checks, which come before it
    for unit in Unit:
        object.__setattr__(budget, unit.value, share if unit is Unit.MACS else None)
    budget.__post_init__()
    assert type(budget.share) is float
    assert budget == Budget(macs=0.5)


@pytest.mark.parametrize(("given", "advice"), [(0.25, 0.25), (50.0, 0.4), ("0.5", 0.4), (None, 0.4)])
def test_a_number_for_a_budget(given: object, advice: float) -> None:
    with pytest.raises(BudgetError, match=re.escape(f"received {given!r} as a budget; expected a Budget, which says")):
        require_budget(given)
    unchecked = inspect.unwrap(hypercompress.compress)
    with pytest.raises(BudgetError, match=re.escape(f"pass Budget(params={advice})")):
        unchecked(network(), given)


@pytest.mark.parametrize("option", ["--params", "--macs"])
def test_a_budget_that_cannot_be_reached(
    refused: Refused, weights: Path, tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("hypercompress.cli.generate.prepare", lambda *_, **__: pytest.fail("measuring began"))
        line = refused(*generate(tmp_path / "s", weights, option, "0.0001", "--generator", "svd"))
    found = re.search(r"expected between ([\d.]+) and 1", line)
    assert found is not None
    words = generate(tmp_path / "s", weights, option, found[1], "--generator", "svd")
    assert main([str(word) for word in words]) == 0  # the range that the message promises


def test_an_output_folder_that_exists(refused: Refused, weights: Path, old: Path) -> None:
    before = contents(old)
    line = refused(*generate(old, weights, "--params", "0.3", "--generator", "svd"))
    assert f"the output folder {old}, which exists" in line
    assert "--overwrite" in line
    assert contents(old) == before
    words = generate(old, weights, "--params", "0.3", "--generator", "svd", "--overwrite")
    assert main([str(word) for word in words]) == 0
    assert hypercompress.from_pretrained(old).report["budget"]["target"] == 0.3


def test_overwrite_spares_what_is_no_student(refused: Refused, weights: Path, tmp_path: Path) -> None:
    gradient(tmp_path / "photos", 2)
    line = refused(*generate(tmp_path / "photos", weights, *SVD, "--overwrite"))
    assert "no student folder" in line
    assert len(contents(tmp_path / "photos")) == 2
    assert "a file; expected a folder" in refused(*generate(tmp_path / "photos" / "0.png", weights, *SVD))
    assert "where nothing can be written" in refused(*generate(tmp_path / "photos" / "0.png" / "s", weights, *SVD))


@pytest.mark.parametrize("fresh", [True, False])
def test_a_full_disk(refused: Refused, weights: Path, old: Path, fresh: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object, path: Path, **__: object) -> None:
        path.write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = contents(old)
    monkeypatch.setattr("hypercompress.artefact.save_file", full)
    out = old.with_name("new") if fresh else old
    line = refused(*generate(out, weights, "--params", "0.3", "--generator", "svd", "--overwrite"))
    assert "No space left on device" in line
    assert "unchanged" in line
    assert [path.name for path in old.parent.iterdir()] == ["student"]
    assert contents(old) == before
    hypercompress.from_pretrained(old)


def script(root: Path, prelude: str, words: tuple[object, ...]) -> "subprocess.Popen[str]":
    """The command line in a process of its own, after a prelude."""
    lines = [
        "import sys, torch",
        "torch.set_num_threads(1)",
        "from hypercompress import artefact",
        "from hypercompress.cli import main",
        prelude,
        f"sys.exit(main({[str(word) for word in words]!r}))",
    ]
    command = [sys.executable, "-c", "\n".join(lines)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the size of files as Linux does")
def test_a_file_system_that_takes_no_more(root: Path, weights: Path, old: Path) -> None:
    """No doubles: the kernel refuses every byte beyond 100 kB of a file."""
    before = contents(old)
    prelude = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    process = script(root, prelude, generate(old, weights, "--params", "0.8", "--generator", "svd", "--overwrite"))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2, err
    assert err.startswith("error: received ")
    assert "File too large" in err
    assert err.count("\n") == 1
    assert [path.name for path in old.parent.iterdir()] == ["student"]
    assert contents(old) == before
    hypercompress.from_pretrained(old)


def test_a_kill_while_saving(root: Path, weights: Path, old: Path) -> None:
    before = contents(old)
    prelude = (
        "import time\n"
        "def slow(tensors, path, metadata):\n"
        "    path.write_bytes(b'half of it')\n"
        "    print('saving', flush=True)\n"
        "    time.sleep(100)\n"
        "artefact.save_file = slow"
    )
    words = generate(old, weights, "--params", "0.3", "--generator", "svd", "--overwrite")
    with script(root, prelude, words) as process:
        assert process.stdout is not None
        assert any("saving" in line for line in process.stdout)
        process.kill()
    assert contents(old) == before
    hypercompress.from_pretrained(old)
    assert main([str(word) for word in words]) == 0  # what the kill left behind is in nobody's way
    assert hypercompress.from_pretrained(old).report["budget"]["target"] == 0.3
