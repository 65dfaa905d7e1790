"""What ``auto`` makes without images is compared with what else there is."""

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
        for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            torch.nn.init.uniform_(norm.weight, 0.5, 1.5)  # the last of a block is 0, and so is what the block adds
            norm.running_mean = torch.randn_like(norm.weight.detach())
        Student(model, architecture).save_pretrained(tmp_path / name)
    (tmp_path / "zoo.csv").write_text("name,data\ntest_resnet,digits\ntest_vit,digits\n")
    return tmp_path


def test_rows_are_made_once(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(without_images, "SHARES", (0.9, 0.5, 0.001))
    for module in ("hypercompress.stand_in", "benchmarks.without_images"):
        monkeypatch.setattr(f"{module}.usual_images", lambda _: 48)
    words = ["--root", "unused", "--teacher", str(zoo / "test_resnet"), str(zoo / "test_vit"), "--out", str(zoo)]
    words += ["--methods", "svd", "kfac-pink", "auto", "--draws", "2"]
    without_images.main(words)
    results = Results(zoo / "without_images.csv", without_images.KEY)
    made = {(row["teacher"], row["asked"], row["draw"], row["share"]): row for row in results.rows}
    assert len(made) == 2 * 2 * (1 + 2 + 2)  # teachers, sizes (of the smallest there are none), methods, draws
    for name in ("test_resnet", "test_vit"):
        for asked, generator, noise in (("svd", "svd", "0"), ("auto", "kfac", "48"), ("kfac-pink", "kfac", "0")):
            row = made[name, asked, "0", "0.5"]
            assert (row["generator"], row["noise"]) == (generator, noise)
        assert made[name, "kfac-pink", "0", "0.5"]["refitted"] == "none"
    kls = [float(made["test_resnet", asked, draw, "0.5"]["kl"]) for asked in ("kfac-pink", "auto") for draw in "01"]
    assert len(set(kls)) == 4  # another draw is other noise; with the moments of the noise it is another student
    assert len(without_images.verdict(results).splitlines()) == 2 * 3  # sizes, methods
    before = (zoo / "without_images.csv").read_bytes()
    without_images.main(words)
    assert (zoo / "without_images.csv").read_bytes() == before


def test_the_verdict_counts_and_averages(tmp_path: Path) -> None:
    """KL as the geometric mean, over draws before it is over networks; EfficientNet-Lite0 stands for itself."""
    results = Results(tmp_path / "without_images.csv", without_images.KEY)
    made = {
        ("a", "svd", 0): (0.04, 0.5),
        ("a", "auto", 0): (0.01, 0.9),
        ("a", "auto", 1): (0.09, 0.7),  # 0.03 in the mean, nearer than 0.04
        ("a", "prior", 0): (0.5, 0.6),  # the best of its closed forms: it agrees more often
        ("a", "kfac-gauss", 0): (0.5, 0.2),
        ("a", "kfac-pink", 0): (0.5, 0.2),
        ("b", "svd", 0): (0.01, 0.8),
        ("b", "auto", 0): (0.01, 0.8),  # level
        (without_images.REAL, "svd", 0): (0.5, 0.6),
        (without_images.REAL, "auto", 0): (0.75, 0.7),
    }
    for (teacher, asked, draw), (kl, agreement) in made.items():
        row = {"teacher": teacher, "share": 0.8, "asked": asked, "draw": draw, "kl": kl, "agreement": agreement}
        results.add(row)
    lines = without_images.verdict(results).splitlines()
    said = dict(line.rsplit(": ", 1) for line in lines)
    assert said["the others, 80% of the parameters, svd"] == (
        "2 networks, KL (geometric mean) 0.02, agreement 65.0 %; auto is nearer on 1, agrees more often on 1 of 2"
    )
    assert said["the others, 80% of the parameters, auto"] == (
        "2 networks, KL (geometric mean) 0.01732, agreement 80.0 %"
    )
    assert said["the others, 80% of the parameters, best closed form"] == (
        "1 networks, KL (geometric mean) 0.5, agreement 60.0 %; auto is nearer on 1, agrees more often on 1 of 1"
    )
    assert said["efficientnet_lite0, 80% of the parameters, svd"] == (
        "1 networks, KL (geometric mean) 0.5, agreement 60.0 %; auto is nearer on 0, agrees more often on 1 of 1"
    )
    assert len(lines) == 4 + 2 + 2
