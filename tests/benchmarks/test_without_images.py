"""What ``auto`` makes without images is compared with ``svd``."""

from pathlib import Path

import pytest
import torch

from benchmarks import without_images
from benchmarks.common import Results
from hypercompress import Student
from hypercompress.architecture import load_timm


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """One network with BatchNorms, one without."""
    cfg = {"input_size": [1, 28, 28], "mean": [0.286], "std": [0.353], "crop_pct": 1.0}
    torch.manual_seed(0)
    sizes = {"test_resnet": {}, "test_vit": {"img_size": 28, "patch_size": 7}}
    for name, size in sizes.items():
        arguments = {"in_chans": 1, "num_classes": 10, **size}
        model, architecture = load_timm(name, model_args=arguments, pretrained=False, pretrained_cfg=cfg)
        Student(model, architecture).save_pretrained(tmp_path / name)
    (tmp_path / "zoo.csv").write_text("name,data\ntest_resnet,digits\ntest_vit,digits\n")
    return tmp_path


def test_rows_of_both_and_a_verdict_where_there_was_noise(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(without_images, "SHARES", (0.9, 0.5, 0.001))
    monkeypatch.setattr("hypercompress.stand_in.usual_images", lambda _: 48)
    words = ["--root", "unused", "--teacher", str(zoo / "test_resnet"), str(zoo / "test_vit"), "--out", str(zoo)]
    without_images.main(words)
    results = Results(zoo / "without_images.csv", without_images.KEY)
    made = {(row["teacher"], row["asked"], row["share"]): (row["generator"], row["noise"]) for row in results.rows}
    assert len(made) == 8  # of the smallest size there are none
    for share in ("0.9", "0.5"):
        assert made["test_resnet", "svd", share] == made["test_vit", "svd", share] == ("svd", "0")
        assert made["test_resnet", "auto", share] == ("kfac", "48")
        assert made["test_vit", "auto", share] == ("kfac", "48")
    lines = without_images.verdict(results).splitlines()
    assert len(lines) == 2
    assert all(" of 2, KL (geometric mean) " in line for line in lines)
    before = (zoo / "without_images.csv").read_bytes()
    without_images.main(words)
    assert (zoo / "without_images.csv").read_bytes() == before
