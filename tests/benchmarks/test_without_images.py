"""What ``auto`` makes without images is compared with what else there is."""

from pathlib import Path

import pytest
import torch

from benchmarks import without_images
from benchmarks.efficientnet_lite0 import file_of
from benchmarks.shared.common import Results, Set, digest
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


@pytest.fixture(autouse=True)
def little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(without_images, "SHARES", (0.5, 0.001))
    monkeypatch.setattr(without_images, "TEST", 100)
    for module in ("hypercompress.synthetic.stand_in", "benchmarks.without_images"):
        monkeypatch.setattr(f"{module}.usual_images", lambda _: 48)


def made_of(zoo: Path, teacher: str, *words: str) -> Results:
    """The table after the program has run."""
    without_images.main(["--root", "unused", "--teacher", str(zoo / teacher), "--out", str(zoo), *words])
    return Results(zoo / "without_images.csv", without_images.KEY)


def test_rows_are_made_once(zoo: Path) -> None:
    words = ["--methods", "svd", "kfac-pink", "auto", "unlike", "unlike-renormalized", "--draws", "2"]
    results = made_of(zoo, "test_resnet", *words)
    made = {(row["asked"], row["draw"]): row for row in results.rows}
    drawn = [(asked, draw) for asked in ("kfac-pink", "auto") for draw in "01"]
    others = [(asked, "0") for asked in ("svd", "unlike", "unlike-renormalized")]
    assert set(made) == {*drawn, *others}
    assert {row["share"] for row in results.rows} == {"0.5"}  # of the smallest size there are none
    assert len({float(made[which]["kl"]) for which in made}) == 7  # another draw is other noise, and so on
    for asked, generator, noise in (("svd", "svd", "0"), ("auto", "kfac", "48"), ("kfac-pink", "kfac", "0")):
        assert (made[asked, "0"]["generator"], made[asked, "0"]["noise"]) == (generator, noise)
    assert made["kfac-pink", "0"]["refitted"] == "none"
    assert len(without_images.verdict(results).splitlines()) == 5
    before = (zoo / "without_images.csv").read_bytes()
    made_of(zoo, "test_resnet", *words)
    assert (zoo / "without_images.csv").read_bytes() == before


def test_without_batchnorm_the_noise_is_as_it_is(zoo: Path) -> None:
    (row,) = made_of(zoo, "test_vit", "--methods", "auto", "--draws", "1").rows
    assert (row["generator"], row["noise"], row["draw"]) == ("kfac", "48", "0")


def test_other_networks_in_the_assets_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[without_images.Subject] = []
    test = Set(torch.zeros(1, 3, 2, 2), torch.zeros(1, dtype=torch.int64), torch.zeros(1, 2))
    monkeypatch.setattr(without_images, "open_teacher", lambda _: (torch.nn.Identity(), None))
    monkeypatch.setattr(without_images, "read_set", lambda *_, **__: test)
    monkeypatch.setattr(without_images, "run", lambda subject, *_: found.append(subject))
    for network in ("lite0", "lite1"):
        file_of(tmp_path, network).write_bytes(network.encode())
        without_images.main(["--root", "unused", "--assets", str(tmp_path), "--out", str(tmp_path)])
    assert [subject.weights for subject in found] == [digest(file_of(tmp_path))] * 2


def test_the_verdict_counts_and_averages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """KL as the geometric mean, over draws before it is over networks; EfficientNet-Lite0 stands for itself."""
    monkeypatch.setattr(without_images, "SHARES", (0.8,))
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
        results.add({**row, "noise": 48 if asked == "auto" else 0})
    read = {"teacher": "c", "share": 0.8, "asked": "auto", "draw": 0, "kl": 9.0, "agreement": 0.0, "noise": 0}
    results.add(read)  # the weights were read after all
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
