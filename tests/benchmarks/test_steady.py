"""The program about few images: statistics alone and steadied by noise."""

from pathlib import Path

import pytest
from torch import nn

from benchmarks import steady
from benchmarks.efficientnet_lite0 import file_of
from benchmarks.shared.common import Results, digest
from benchmarks.shared.pairs import Pairs, Subject
from hypercompress.architecture import Architecture
from hypercompress.student import Student


def test_steadied_students_are_compared_with_plain_ones(
    network: tuple[nn.Module, Architecture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypercompress.synthetic.stand_in.usual_images", lambda _: 64)
    Student(*network).save_pretrained(tmp_path / "digits" / "teacher")
    (tmp_path / "digits" / "zoo.csv").write_text("name,data\nteacher,digits\n")
    words = ["--root", "unused", "--teacher", str(tmp_path / "digits" / "teacher"), "--images", "16", "--out"]
    steady.main([*words, str(tmp_path)])
    results = Results(tmp_path / "steady.csv", steady.PAIRS.key)
    sizes = {(row["unit"], row["share"]) for row in results.rows}
    assert len(results.rows) == 2 * len(sizes) >= 2  # a size out of reach has no row
    assert {row["measured"] for row in results.rows} == {"12"}  # the other four judge
    kls = {mixed: [row["kl"] for row in results.rows if row["steady"] == mixed] for mixed in ("True", "False")}
    assert kls["True"] != kls["False"]
    before = (tmp_path / "steady.csv").read_bytes()
    steady.main([*words, str(tmp_path)])
    assert (tmp_path / "steady.csv").read_bytes() == before


def test_other_networks_in_the_assets_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Subject] = []
    monkeypatch.setattr(steady, "open_teacher", lambda _: (nn.Identity(), None))
    monkeypatch.setattr(Pairs, "run", lambda _self, subject, *_: found.append(subject))
    for network in ("lite0", "lite1"):
        file_of(tmp_path, network).write_bytes(network.encode())
        steady.main(["--root", "unused", "--assets", str(tmp_path), "--out", str(tmp_path)])
    assert [subject.weights for subject in found] == [digest(file_of(tmp_path))] * 2


def test_the_verdict_is_a_geometric_mean_of_pairs(tmp_path: Path) -> None:
    results = Results(tmp_path / "steady.csv", steady.PAIRS.key)
    made = {("a", False): (0.4, 0.5), ("a", True): (0.1, 0.9), ("b", False): (0.1, 0.8), ("b", True): (0.2, 0.7)}
    for (teacher, mixed), (kl, agreement) in made.items():
        key = {"teacher": teacher, "images": 16, "unit": "params", "share": 0.3, "steady": mixed}
        results.add({**key, "kl": kl, "agreement": agreement})
    results.add({"teacher": "c", "images": 16, "unit": "params", "share": 0.3, "steady": True, "kl": 9, "agreement": 0})
    real = {"teacher": steady.REAL, "images": 16, "unit": "params", "share": 0.8}
    results.add({**real, "steady": False, "kl": 1.0, "agreement": 0.4})
    results.add({**real, "steady": True, "kl": 0.5, "agreement": 0.6})
    assert steady.verdict(steady.PAIRS, results).splitlines() == [
        "16 images, 2 students: 0.71 of the KL (1 larger), agreement 65.0 -> 80.0 %",
        "efficientnet_lite0, 16 images, 1 students: 0.50 of the KL (0 larger), agreement 40.0 -> 60.0 %",
    ]
