"""What every test shares: shapes checked at run time, fixed seeds, freed memory kept, and the folder of real data."""

import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import jaxtyping
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def shaped() -> list[str]:
    """The modules that annotate shapes; of the others mypy has checked every type, and a check of every call would take
    a third of the run.
    """
    files = sorted(path for name in ("hypercompress", "lightning_modules") for path in (ROOT / name).rglob("*.py"))
    named = (path.relative_to(ROOT).with_suffix("").parts for path in files if "jaxtyping" in path.read_text())
    return [".".join(parts) for parts in named]


# Must stand before the first import of the packages: jaxtyping annotations are checked here and nowhere else.
jaxtyping.install_import_hook(shaped(), "beartype.beartype")

from hypercompress.running.memory import give_back, keep_freed  # noqa: E402

# The tests' networks are tiny: a second thread costs more than it brings, and one makes sums repeatable.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the programs that tests start, too
# The system clears every page that it hands out; where that is slow, large activations take half as long again.
keep_freed()

hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Each test starts from the same global random state, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  (third-party code reads the global state)
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="module")
def _memory() -> Iterator[None]:
    """What a file of tests has freed goes back to the system."""
    yield
    give_back()


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
    return ROOT


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
