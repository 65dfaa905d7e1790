"""Warnings name the line of the user, through whatever calls and decorators they come."""

import inspect
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hypercompress import Budget, compress
from hypercompress.data import Preprocess, open_data
from hypercompress.errors import warn
from hypercompress.fidelity import accuracy
from hypercompress.preparation import prepare
from hypercompress.transfer import adapt
from tests.transfer.models import model_of

HALF = Budget(params=0.5)


def here() -> int:
    """The line that calls this."""
    frame = inspect.currentframe()
    assert isinstance(frame, FrameType)
    assert frame.f_back is not None
    return frame.f_back.f_lineno


class Helped(nn.Sequential):
    """A network that takes a second input, which may be left out."""

    def forward(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        return super().forward(x)


def network() -> nn.Module:
    return Helped(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))


def one_class() -> Iterator[tuple[Tensor, Tensor]]:
    """Three batches of one class alone."""
    return ((torch.randn(8, 32), torch.zeros(8, dtype=torch.int64)) for _ in range(3))


def of_a_folder(tmp_path: Path) -> tuple[int, Any]:
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no image")
    wanted = Preprocess((3, 8, 8), (0.5,) * 3, (0.5,) * 3)
    return here(), open_data(str(tmp_path), wanted, train=True)


def of_a_preparation(_: Path) -> tuple[int, Any]:
    model, pairs = network(), [(torch.randn(8, 32), torch.randn(8, 3)) for _ in range(4)]
    return here(), prepare(model, pairs, "svd")


def of_calibration(_: Path) -> tuple[int, Any]:
    model, batches = network(), one_class()
    return here(), prepare(model, batches, "kfac", images=16)


def of_compression(_: Path) -> tuple[int, Any]:
    model, batches = network(), one_class()
    return here(), compress(model, HALF, batches, images=16)


def of_a_student_with_more(tmp_path: Path) -> tuple[int, Any]:
    student = compress(network(), HALF, example=torch.randn(4, 32), generator="svd")
    student.beside = nn.Linear(2, 2)
    return here(), student.save_pretrained(tmp_path / "student")


def of_nan(_: Path) -> tuple[int, Any]:
    model = nn.Sequential(nn.Linear(32, 10))
    nn.init.constant_(model[0].weight, torch.nan)
    return here(), accuracy(model, one_class())


def of_copies(_: Path) -> tuple[int, Any]:
    model, images = model_of(), torch.randn(8, 1, 32, 32)
    twice, labels = torch.cat((images, images)), torch.arange(16) % 2
    return here(), adapt(model, twice, labels, network="none", views=0)


def told_through() -> None:
    warn("told")


CASES = (of_a_folder, of_a_preparation, of_calibration, of_compression, of_a_student_with_more, of_nan, of_copies)


@pytest.mark.parametrize("case", CASES)
def test_the_line_of_the_user_is_named(case: Callable[[Path], tuple[int, Any]], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="received|skipped") as told:
        line, _ = case(tmp_path)
    assert [(one.filename, one.lineno) for one in told] == [(__file__, line)]


@pytest.mark.parametrize("module", ["lightning_modules.data", "lightning.pytorch.cli", "torch.nn.modules.module"])
def test_what_is_between_is_passed_over(module: str) -> None:
    through = FunctionType(told_through.__code__, {"__name__": module, "warn": warn})
    with pytest.warns(UserWarning, match="told") as told:
        line, _ = here(), through()
    assert [(one.filename, one.lineno) for one in told] == [(__file__, line)]


def test_python_tells_each_line_once() -> None:
    """As of any warning: by default again where another line, or another message, is concerned."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for number in range(6):
            warn(f"told {number % 2}")
        warn("told 0")
    assert [str(one.message) for one in told] == ["told 0", "told 1", "told 0"]


def test_code_without_a_module_is_warned_too() -> None:
    """Python drops what is told at a line of no module."""
    with pytest.warns(UserWarning, match="told"):
        exec("warn('told')", {"warn": warn})  # noqa: S102 - our own


def test_without_any_user_the_outermost_line_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hypercompress.errors._is_between", lambda *_: True)
    with pytest.warns(UserWarning, match="told") as told:
        warn("told")
    assert told[0].filename != __file__
