"""The index of a zoo: read as it was written, and a broken one is one line, of the builder and of meta-training."""

from pathlib import Path

import pytest

from hypercompress.errors import DataError
from lightning_modules import zoo
from lightning_modules.index import COLUMNS, read_index, read_rows, write_rows

ROW = dict(zip(COLUMNS, ("a", "resnet18", "digits", "train", "10", "20", "0.5"), strict=True))
HEADER = ",".join(COLUMNS).encode()


def test_rows_come_back_by_name(tmp_path: Path) -> None:
    path = tmp_path / "zoo.csv"
    assert read_rows(path) == {}
    write_rows(path, [ROW, {**ROW, "name": "ä, b"}])
    assert read_rows(path) == {"a": ROW, "ä, b": {**ROW, "name": "ä, b"}}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"family,data,split,params,macs,top1\nr,d,train,1,2,3\n", "without the columns name; expected name, "),
        (HEADER + b"\na,r,d,train,1,2,3,4\n", "whose row 1 has not 7 cells; expected one in each column; remove it"),
        (HEADER + b"\na,r,d,train,1,2,3\nb,r\n", "whose row 2 has not 7 cells"),
        (b"\xff\xfe", r"which is no CSV file \(.*; expected a zoo's index; remove it and run"),
        (HEADER + b"\n" + b"a" * 140_000, r"which is no CSV file \(field larger"),
    ],
    ids=["no name", "too long", "cut off", "bytes", "huge"],
)
def test_a_broken_index_is_one_line(
    content: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index, config = tmp_path / "out" / "zoo.csv", tmp_path / "zoo.yaml"
    index.parent.mkdir()
    index.write_bytes(content)
    with pytest.raises(DataError, match=words):
        read_index(index.parent)
    config.write_text("teachers: [{name: a, model: test_resnet, data: digits, split: train, seed: 0, epochs: 1}]")
    assert zoo.main(["--config", str(config), "--out", str(index.parent)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: received")
    assert [path.name for path in index.parent.iterdir()] == ["zoo.csv"]  # nothing was trained, nothing half-written
    assert index.read_bytes() == content
