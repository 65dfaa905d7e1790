"""What every test shares: shapes and types checked at run time, fixed seeds, and the folder of real data."""

import os
import random
from collections.abc import Callable
from pathlib import Path

import hypothesis
import jaxtyping
import numpy as np
import pytest
import torch

# Must stand before the first import of the packages: jaxtyping annotations are checked here and nowhere else.
jaxtyping.install_import_hook(["hypercompress", "lightning_modules"], "beartype.beartype")

# The tests' networks are tiny: a second thread costs more than it brings, and one makes sums repeatable.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the programs that tests start, too

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Each test starts from the same global random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (third-party code reads the global state)
    torch.manual_seed(0)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process: exit code, standard output, standard error."""
    from hypercompress.cli import main

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No clock; gives the file in which times are kept."""
    from tests.timeless import stop_clocks

    return stop_clocks(monkeypatch, tmp_path)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout: the folder that holds pyproject.toml."""
    return Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def assets() -> Path:
    """Folder of real images and pretrained weights, named by the environment variable HYPERCOMPRESS_ASSETS."""
    text = os.environ.get("HYPERCOMPRESS_ASSETS")
    if not text:
        pytest.skip("HYPERCOMPRESS_ASSETS is not set: it names a folder with real images and pretrained weights")
    folder = Path(text)
    if not folder.is_dir():
        pytest.skip(f"HYPERCOMPRESS_ASSETS is {text}, which is no folder")
    return folder
