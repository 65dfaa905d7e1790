"""The program about few images, as they are and mixed."""

import math
from pathlib import Path

import pytest
import torch
from torch import nn

import hypercompress
from benchmarks import mixing
from benchmarks.shared import starts
from benchmarks.shared.common import Results, answered
from benchmarks.shared.distillation import Recipe, mixtures

TEACHER = Path(hypercompress.__file__).parent / "pretrained" / "fashion_mnist_teacher"


def test_plain_and_mixed_images_stand_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(starts, "TEST", 64)
    words = ["--root", "unused", "--teacher", str(TEACHER), "--shares", "0.001", "0.05"]
    words += ["--images", "32", "100000", "--steps", "2", "--out", str(tmp_path)]
    monkeypatch.setattr(mixing, "data_of", lambda *_: "fashion_mnist_mini")
    mixing.main(words)
    results = Results(tmp_path / "mixing.csv", mixing.KEY)
    # A thousandth is out of reach, and there are no 100,000 images.
    assert [(row["images"], row["share"], row["way"]) for row in results.rows] == [
        ("32", "0.05", "plain"),
        ("32", "0.05", "mixed"),
    ]
    plain, mixed = results.rows
    assert plain["kl_start"] == mixed["kl_start"]
    assert plain["rate"] == mixed["rate"]
    assert plain["kl"] != mixed["kl"]
    assert mixed["frozen"] == "True"
    line = mixing.verdict(results).splitlines()[-1]
    beside, nearer = float(mixed["kl"]) / float(plain["kl"]), float(mixed["kl"]) < float(plain["kl"])
    assert f"{beside:.2f} ({int(nearer)} of 1 nearer)" in line
    before = (tmp_path / "mixing.csv").read_bytes()
    mixing.main(words)
    assert (tmp_path / "mixing.csv").read_bytes() == before


def test_there_are_as_many_mixtures_as_the_steps_take_and_the_teacher_answers_them() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)).eval()
    pool = answered(teacher, torch.randn(10, 3, 4, 4))
    made = mixtures(teacher, pool, Recipe("adamw", 1.0, steps=7, batch=5), 0)
    assert len(made) == 35
    torch.testing.assert_close(made.logits, teacher(made.images))
    pixels = {tuple(pixel.tolist()) for pixel in pool.images.permute(0, 2, 3, 1).reshape(-1, 3)}
    assert all(tuple(pixel.tolist()) in pixels for pixel in made.images.permute(0, 2, 3, 1).reshape(-1, 3))
    assert not math.isclose(float(made.images.sum()), float(pool.images.sum()))
