"""The program about the images that were held out: without them, and with them in the end."""

from pathlib import Path

import pytest
from torch import nn

from benchmarks import final_fit
from benchmarks.shared.common import Results
from hypercompress.architecture import Architecture
from hypercompress.student import Student


@pytest.mark.parametrize("steady", [False, True])
def test_students_of_all_images_are_compared_with_those_without_the_held_out(
    steady: bool, network: tuple[nn.Module, Architecture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hypercompress.synthetic.stand_in.usual_images", lambda _: 64)
    Student(*network).save_pretrained(tmp_path / "digits" / "teacher")
    (tmp_path / "digits" / "zoo.csv").write_text("name,data\nteacher,digits\n")
    words = ["--root", "unused", "--teacher", str(tmp_path / "digits" / "teacher"), "--images", "16"]
    final_fit.main([*words, *["--steady"][: int(steady)], "--out", str(tmp_path)])
    results = Results(tmp_path / f"final_fit{'_steady' if steady else ''}.csv", final_fit.pairs(steady).key)
    kls = {
        given: [float(row["kl"]) for row in results.rows if row["final_fit"] == given] for given in ("True", "False")
    }
    assert len(kls["True"]) == len(kls["False"]) >= 1
    assert kls["True"] != kls["False"]
    assert {row["measured"] for row in results.rows} == {"12"}  # before the other four were added
