"""Weights and a student on disk, and commands that must fail."""

from pathlib import Path

import pytest
from safetensors.torch import save_file

from hypercompress.cli import main
from tests.bad_input.words import SVD, Refused, generate, network


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


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "weights.safetensors"
    save_file(network().state_dict(), path)
    return path


@pytest.fixture
def old(weights: Path, tmp_path: Path) -> Path:
    """A student that is there already."""
    assert main([str(word) for word in generate(tmp_path / "student", weights, *SVD)]) == 0
    return tmp_path / "student"
