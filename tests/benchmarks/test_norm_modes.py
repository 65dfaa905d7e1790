"""The program about modes of norms: training and frozen, side by side."""

import math
from pathlib import Path

import pytest
from torch import nn

from benchmarks import norm_modes
from benchmarks.shared import starts
from benchmarks.shared.common import Results
from hypercompress.architecture import Architecture
from hypercompress.student import Student


def test_modes_of_the_norms_stand_side_by_side(
    network: tuple[nn.Module, Architecture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(starts, "TRAIN", 192)
    monkeypatch.setattr(starts, "TEST", 64)
    Student(*network).save_pretrained(tmp_path / "teacher")
    words = ["--root", "unused", "--teacher", str(tmp_path / "teacher"), "--shares", "0.01", "0.6", "--rates", "0.003"]
    monkeypatch.setattr(norm_modes, "data_of", lambda *_: "fashion_mnist_mini")
    norm_modes.main([*words, "--steps", "2", "--out", str(tmp_path)])
    results = Results(tmp_path / "norm_modes.csv", norm_modes.KEY)
    assert [(row["share"], row["norms"]) for row in results.rows] == [("0.6", "training"), ("0.6", "frozen")]
    first, second = results.rows  # 1 % is out of reach
    assert first["kl_start"] == second["kl_start"]
    assert first["kl"] != second["kl"]
    assert first["costs"] == second["costs"] != "1"
    table, sentence = norm_modes.verdict(results).split("\n\n")
    header, _, line = (row.split("|")[1:-1] for row in table.splitlines())
    told = dict(zip(map(str.strip, header), map(str.strip, line), strict=True))
    way = "frozen" if float(first["costs"]) > norm_modes.COSTS else "training"
    assert told["as chosen"] == told[way] != told["training" if way == "frozen" else "frozen"]
    gain = 100 * (float(second["top1"]) - float(first["top1"]))
    chosen = f"1 students are to be frozen; top-1 is {gain:+.2f}" if way == "frozen" else "0 students are to be frozen"
    assert sentence.startswith(f"Rate 0.003: {chosen}")
    before = (tmp_path / "norm_modes.csv").read_bytes()
    norm_modes.main([*words, "--steps", "2", "--out", str(tmp_path)])
    assert (tmp_path / "norm_modes.csv").read_bytes() == before


def test_no_students_have_no_mean() -> None:
    assert starts.told([]) == "-"
    assert starts.told([math.log(0.5), math.log(2.0)]) == "1.00 (1 worse)"
