"""The program about few images: students by how gradients are drawn."""

from pathlib import Path

from torch import nn

from benchmarks import (
    few_images,
)
from benchmarks.shared.common import Results
from hypercompress.architecture import Architecture
from hypercompress.student import Student


def test_few_images_are_compared_by_how_their_gradients_are_drawn(
    network: tuple[nn.Module, Architecture], tmp_path: Path
) -> None:
    Student(*network).save_pretrained(tmp_path / "digits" / "teacher")
    index = "name,data\nteacher,digits\n"
    (tmp_path / "digits" / "zoo.csv").write_text(index)
    words = ["--root", "unused", "--teacher", str(tmp_path / "digits" / "teacher"), "--images", "24"]
    few_images.main([*words, "--out", str(tmp_path)])
    results = Results(tmp_path / "few_images.csv", few_images.KEY)
    sizes = {(row["unit"], row["share"]) for row in results.rows}
    assert len(results.rows) == 3 * len(sizes) >= 3  # a size out of reach has no row
    kls = {row["probing"]: float(row["kl"]) for row in results.rows if row["unit"] == "macs"}
    assert set(kls) == {"one", "several", "several, softened"}
    assert len(set(kls.values())) > 1
    assert "24 images, one: 1.00 of the KL of one gradient (0 of" in few_images.verdict(results)
    before = (tmp_path / "few_images.csv").read_bytes()
    few_images.main([*words, "--out", str(tmp_path)])
    assert (tmp_path / "few_images.csv").read_bytes() == before
