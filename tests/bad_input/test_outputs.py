"""Outputs that cannot be written: nothing is half-written, and what was there stays."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import hypercompress
from hypercompress.cli import main
from tests.bad_input.words import SVD, Refused, generate, gradient


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


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
    monkeypatch.setattr("hypercompress.saved.artefact.save_file", full)
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
        "from hypercompress.saved import artefact",
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
