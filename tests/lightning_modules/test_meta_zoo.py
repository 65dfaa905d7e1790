"""The teachers that meta-training reads: whole zoos, named parts of them, and what is refused."""

from pathlib import Path

import pytest

from hypercompress.errors import DataError
from lightning_modules.index import read_index
from tests.lightning_modules.conftest import add


def test_a_zoo_without_index_or_teachers_or_with_old_splits_is_refused(zoo: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"without zoo\.csv"):
        read_index(tmp_path)
    for rows, message in (
        ("two,fashion_mnist_mini,validation\n", "split 'train'"),
        ("one,fashion_mnist_mini,train\ntwo,fashion_mnist_mini,heldout\n", "split 'validation'.*run python -m"),
        ("one,fashion_mnist_mini,test\n", "split test; expected train, validation, heldout"),
    ):
        (zoo / "zoo.csv").write_text(f"name,data,split\n{rows}")
        with pytest.raises(DataError, match=message):
            read_index(zoo)


def test_a_named_part_of_the_zoo(zoo: Path) -> None:
    add(zoo, "four", "train")
    assert [entry.name for entry in read_index(zoo, ["four", "two"])] == ["two", "four"]
    assert [(e.name, e.split) for e in read_index(zoo, ["four"], "one")] == [("one", "left_out"), ("four", "train")]
    assert [(e.name, e.split) for e in read_index(zoo, ["four", "two"], "two")] == [
        ("two", "left_out"),
        ("four", "train"),
    ]
    for teachers, leave_out, message in (
        (["one", "nobody"], None, "received teachers or leave_out with nobody; expected names of .*correct the names"),
        ([], "nobody", "with nobody; expected"),
        ([], "three", "with three; expected names of .* that are not held out .one, two, four.;"),
        (["one", "three"], "two", "with three; expected"),
        (["one"], None, "split 'validation' among those named; expected"),
        (["one"], "one", "split 'train' among those named; expected"),
    ):
        with pytest.raises(DataError, match=message):
            read_index(zoo, teachers, leave_out)
