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


def test_rows_of_both_are_made_once(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert len(without_images.verdict(results).splitlines()) == 2
    before = (zoo / "without_images.csv").read_bytes()
    without_images.main(words)
    assert (zoo / "without_images.csv").read_bytes() == before


def test_the_verdict_counts_and_averages(tmp_path: Path) -> None:
    """Nearer is what has noise and less KL; EfficientNet-Lite0 stands for itself."""
    results = Results(tmp_path / "without_images.csv", without_images.KEY)
    made = {
        ("a", "svd"): (0.04, 0.5, 0),
        ("a", "auto"): (0.01, 0.9, 48),
        ("b", "svd"): (0.01, 0.8, 0),
        ("b", "auto"): (0.01, 0.8, 48),  # level
        ("c", "svd"): (0.01, 0.8, 0),
        ("c", "auto"): (0.0, 1.0, 0),  # the weights were read after all
        (without_images.REAL, "svd"): (0.5, 0.6, 0),
        (without_images.REAL, "auto"): (0.25, 0.7, 48),
    }
    for (teacher, asked), (kl, agreement, noise) in made.items():
        row = {"teacher": teacher, "share": 0.8, "asked": asked, "kl": kl, "agreement": agreement, "noise": noise}
        results.add(row)
    others, real = without_images.verdict(results).splitlines()
    assert others == (
        "the others, 80% of the parameters: auto nearer than svd on 1 of 3, KL (geometric mean) 0.01587 -> 0.0004642, "
        "agreement 70.0 -> 90.0 %"
    )
    assert real == (
        "efficientnet_lite0, 80% of the parameters: auto nearer than svd on 1 of 1, KL (geometric mean) 0.5 -> 0.25, "
        "agreement 60.0 -> 70.0 %"
    )
