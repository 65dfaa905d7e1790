"""The program that takes the families every way, on one small network and on networks that fail."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks import exports
from benchmarks.shared import families
from benchmarks.shared.common import Results
from hypercompress.errors import ExportError
from hypercompress.export import FORMATS


class Breaking(nn.Module):
    """A graph ends in the middle of it, because what comes next depends on a number."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.fc(x)
        return y if float(y.sum()) > 1e9 else 2 * y


def test_a_family_goes_every_way_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(families.FAMILIES, "test_vit", {"img_size": 64, "depth": 1})
    words = ["--families", "test_vit", "--backend", "aot_eager", "--out", str(tmp_path)]
    exports.main(words)
    rows = {row["way"]: row for row in Results(tmp_path / "exports.csv", exports.KEY, exports.MADE_OF).rows}
    assert tuple(rows) == exports.WAYS
    for row in rows.values():
        assert (row["error"], row["input_size"]) == ("", "3x64x64")
        assert float(row["difference"]) <= 1e-4
    assert int(rows["onnx"]["bytes"]) == pytest.approx(int(rows["onnx"]["student_bytes"]), rel=0.1, abs=2**18)
    compiled = rows[exports.COMPILE]
    assert [compiled[name] for name in ("fullgraph", "dynamic", "graphs", "refused")] == ["True", "True", "2", ""]
    out = capsys.readouterr().out
    assert "onnx: 1 of 1 families" in out
    assert "torch.compile: 1 of 1 families, largest difference 0.0e+00, 1 as one graph for any batch size" in out
    before = (tmp_path / "exports.csv").read_bytes()
    monkeypatch.setattr(exports, "student_of", lambda name: pytest.fail("made again"))
    exports.main(words)
    assert (tmp_path / "exports.csv").read_bytes() == before


def test_a_failure_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ExportError("received this;\nexpected that")

    monkeypatch.setattr(exports, "export", refuse)
    monkeypatch.setattr(exports, "student_of", lambda name: (nn.Linear(4, 2), (4,)))
    exports.main(["--families", "one", "--ways", *exports.FILES, "--out", str(tmp_path)])
    monkeypatch.setattr(exports, "student_of", refuse)
    exports.main(["--families", "two", "--ways", "onnx", "--out", str(tmp_path)])
    rows = Results(tmp_path / "exports.csv", exports.KEY, exports.MADE_OF).rows
    errors = [(row["model"], row["difference"], row["error"]) for row in rows]
    assert errors == [
        ("one", "", "ExportError: received this;"),
        ("one", "", "ExportError: received this;"),
        ("two", "", "no student: ExportError: received this;"),
    ]
    assert "onnx: 0 of 2 families" in capsys.readouterr().out


def test_graph_breaks_and_what_does_not_compile_are_said() -> None:
    found = exports.tried(Breaking(), (4,), exports.COMPILE, "eager")
    assert (found["fullgraph"], found["dynamic"], found["error"]) == (False, True, None)
    assert found["graphs"] > 2
    assert found["refused"].startswith("fullgraph=True, dynamic=True: ")
    found = exports.tried(nn.Linear(4, 2), (4,), exports.COMPILE, "no_such_backend")
    assert found["difference"] is None
    assert found["error"].startswith("fullgraph=False, dynamic=False: ")
    assert found["refused"].count("; fullgraph=") == 1


def test_another_output_is_a_failure_that_keeps_its_number() -> None:
    def wrong(graph: torch.fx.GraphModule, example: list[Tensor]) -> Any:
        return lambda *values: [output + 0.1 for output in graph(*values)]

    network = nn.Linear(4, 2).eval()
    nn.init.zeros_(network.weight)  # outputs below 1, where a difference is absolute
    found = exports.tried(network, (4,), exports.COMPILE, wrong)
    assert found["difference"] == pytest.approx(0.1, rel=1e-5)
    assert "differ from the model's by" in found["error"]


def test_the_families_are_many_and_every_format_is_tried() -> None:
    assert len(families.FAMILIES) >= 20
    assert set(exports.FILES.values()) == set(FORMATS)
    assert set(families.FAMILIES) >= families.FIXED
