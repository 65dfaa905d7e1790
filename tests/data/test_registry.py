"""Data sets by name: the real loaders on small files in the real layouts, and every refusal."""

import gzip
import importlib.util
import pickle
import struct
import sys
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from hypercompress.data import Preprocess, loader, open_data, registered_names
from hypercompress.errors import DataError

GREY = Preprocess((1, 28, 28), (0.0,), (1.0,))
RGB = Preprocess((3, 32, 32), (0.0,) * 3, (1.0,) * 3)
NAMES = ["cifar10", "cifar100", "fashion_mnist", "flowers102", "stanford_cars"]
needs_scipy = pytest.mark.skipif(importlib.util.find_spec("scipy") is None, reason="scipy reads these labels")
needs_sklearn = pytest.mark.skipif(importlib.util.find_spec("sklearn") is None, reason="scikit-learn holds the digits")


@pytest.fixture(autouse=True)
def _no_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise URLError("no network in tests")

    for module in ("cifar", "mnist", "flowers102"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", refuse)
    monkeypatch.setattr("torchvision.datasets.flowers102.download_url", refuse)
    monkeypatch.setattr("hypercompress.data.tiny_imagenet.download_and_extract_archive", refuse)


def test_the_names_are_the_documented_ones(root: Path) -> None:
    packaged = {"digits", "fashion_mnist_mini", "glyphs", "mnist_5k", "solar_cells"}
    assert set(registered_names()) == {*NAMES, *packaged, "tiny_imagenet"}
    page = (root / "docs" / "generate.md").read_text(encoding="utf-8")
    assert [name for name in registered_names() if f"`{name}`" not in page] == []


@pytest.mark.parametrize(("train", "count"), [(True, 4096), (False, 2048)])
def test_the_packaged_images_are_balanced_and_repeatable(train: bool, count: int) -> None:
    data = open_data("fashion_mnist_mini", GREY, train=train)
    images, labels = next(iter(loader(data, batch_size=count)))
    per_class = torch.bincount(labels, minlength=10)
    assert (len(data), len(data.classes), data.labelled) == (count, 10, True)
    assert int(per_class.max() - per_class.min()) <= 1
    assert float(images.mean()) == pytest.approx(0.286, abs=0.01), "the published mean of Fashion-MNIST"
    assert torch.equal(images[0], data[0][0])


def test_packaged_training_and_test_images_are_different() -> None:
    both = [open_data("fashion_mnist_mini", GREY, train=t) for t in (True, False)]
    train, test = ({data[i][0].numpy().tobytes() for i in range(len(data))} for data in both)
    assert len(train & test) <= 1
    assert len(train) >= 4090


def test_the_packaged_file_is_small_and_licensed(root: Path) -> None:
    folder = root / "hypercompress" / "data"
    assert (folder / "fashion_mnist_mini.npz").stat().st_size <= 3_000_000
    licence = (folder / "fashion_mnist_mini.LICENSE").read_text(encoding="utf-8")
    assert "The MIT License" in licence
    assert "Zalando SE" in licence


@needs_sklearn
def test_digits_are_split_once_and_for_all() -> None:
    train, test = (open_data("digits", GREY, train=t) for t in (True, False))
    assert (len(train), len(test)) == (1437, 360)
    assert train.classes == tuple("0123456789")
    assert {test[i][1] for i in range(len(test))} == set(range(10))
    assert torch.equal(train[0][0], open_data("digits", GREY, train=True)[0][0])
    assert 0.9 < max(float(train[i][0].max()) for i in range(20)) <= 1.01


def test_digits_without_scikit_learn_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(DataError, match=r"scikit-learn reads; .*pip install 'hypercompress\[train\]'"):
        open_data("digits", GREY, train=True)


def test_flowers_without_scipy_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> NoReturn:
        raise ModuleNotFoundError("No module named 'scipy'")

    monkeypatch.setattr(datasets.Flowers102, "__init__", missing)
    with pytest.raises(DataError, match=r"scipy reads; .*hypercompress\[train\]"):
        open_data("flowers102", RGB, train=True)


def _idx(path: Path, array: np.ndarray[Any, Any], *, packed: bool = False) -> None:
    content = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if packed else content)


def _fashion(root: Path) -> None:
    rng = np.random.default_rng(0)
    for split, count in (("train", 12), ("t10k", 5)):
        _idx(root / "FashionMNIST/raw" / f"{split}-images-idx3-ubyte", rng.integers(0, 256, (count, 28, 28), np.uint8))
        _idx(root / "FashionMNIST/raw" / f"{split}-labels-idx1-ubyte", np.arange(count, dtype=np.uint8) % 10)


def test_fashion_mnist_is_read_from_its_root(tmp_path: Path) -> None:
    _fashion(tmp_path)
    train, test = (open_data(f"fashion_mnist:{tmp_path}", GREY, train=t) for t in (True, False))
    raw = datasets.FashionMNIST(tmp_path, train=False)
    assert (len(train), len(test)) == (12, 5)
    assert train.classes[9] == "Ankle boot"
    torch.testing.assert_close(test[3][0][0], raw.data[3] / 255)
    assert test[3][1] == int(raw.targets[3])


@pytest.mark.parametrize("name", ["fashion_mnist", "tiny_imagenet"])
def test_a_root_of_an_unknown_user_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="received data root ~nobody-of-this-name/x"):
        open_data(f"{name}:~nobody-of-this-name/x", GREY, train=True)


def test_a_home_folder_is_the_default_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    _fashion(tmp_path / ".cache" / "hypercompress")
    assert len(open_data("fashion_mnist", GREY, train=True)) == 12
    _fashion(tmp_path / "elsewhere")
    assert len(open_data("fashion_mnist:~/elsewhere", GREY, train=True)) == 12


def test_a_cut_file_is_reported_with_its_place(tmp_path: Path) -> None:
    _fashion(tmp_path)
    path = tmp_path / "FashionMNIST/raw/train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=f"data root {tmp_path}, where the data set is missing or corrupt"):
        open_data(f"fashion_mnist:{tmp_path}", GREY, train=True)


def _cifar(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3072), np.uint8)
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [0, 1, 2, 9]}))
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}))
    monkeypatch.setattr(
        "torchvision.datasets.cifar.check_integrity", lambda *_: True
    )  # the small files have other sums


def test_cifar10_is_read_from_its_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _cifar(tmp_path, monkeypatch)
    train, test = (open_data(f"cifar10:{tmp_path}", RGB, train=t) for t in (True, False))
    assert (len(train), len(test)) == (20, 4)
    assert (test[3][1], test.classes[9]) == (9, "truck")
    assert train[0][0].shape == (3, 32, 32)


@needs_scipy
def test_flowers_are_read_from_their_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scipy.io import savemat

    folder = tmp_path / "flowers-102"
    (folder / "jpg").mkdir(parents=True)
    for i in range(1, 5):
        Image.new("RGB", (40, 40), (i, 0, 0)).save(folder / "jpg" / f"image_{i:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": np.array([3, 1, 2, 102])})
    savemat(folder / "setid.mat", {"trnid": np.array([1, 2]), "valid": np.array([3, 3]), "tstid": np.array([4, 3])})
    monkeypatch.setattr(datasets.Flowers102, "_check_integrity", lambda self: True)
    train, test = (open_data(f"flowers102:{tmp_path}", RGB, train=t) for t in (True, False))
    assert [train[i][1] for i in range(len(train))] == [2, 0]
    assert [test[i][1] for i in range(len(test))] == [101, 1]


@needs_scipy
def test_stanford_cars_are_read_from_their_root(tmp_path: Path) -> None:
    from scipy.io import savemat

    home = tmp_path / "stanford_cars"
    for folder, table in (("cars_train", "devkit/cars_train_annos"), ("cars_test", "cars_test_annos_withlabels")):
        (home / folder).mkdir(parents=True)
        (home / "devkit").mkdir(exist_ok=True)
        for name in ("1.jpg", "2.jpg"):
            Image.new("RGB", (40, 40)).save(home / folder / name)
        rows = np.array([("1.jpg", 2), ("2.jpg", 1)], dtype=[("fname", object), ("class", object)])
        savemat(home / f"{table}.mat", {"annotations": rows})
    savemat(home / "devkit" / "cars_meta.mat", {"class_names": np.array(["AM General", "Acura"], dtype=object)})
    for train in (True, False):
        data = open_data(f"stanford_cars:{tmp_path}", RGB, train=train)
        assert [data[i][1] for i in range(len(data))] == [1, 0]
        assert data.classes == ("AM General", "Acura")


def _tiny(root: Path) -> Path:
    home = root / "tiny-imagenet-200"
    for name, grey in (("n02", 20), ("n01", 10)):
        (home / "train" / name / "images").mkdir(parents=True)
        Image.new("L", (64, 64), grey).save(home / "train" / name / "images" / f"{name}_0.png")
    (home / "val" / "images").mkdir(parents=True)
    Image.new("L", (64, 64), 30).save(home / "val" / "images" / "val_0.png")
    (home / "val" / "val_annotations.txt").write_text("val_0.png\tn02\t0\t0\t62\t62\n")
    (home / "wnids.txt").write_text("n02\nn01\n")
    return home


def test_tiny_imagenet_is_read_as_distributed(tmp_path: Path) -> None:
    home = _tiny(tmp_path)
    for root in (tmp_path, home):
        train, test = (open_data(f"tiny_imagenet:{root}", RGB, train=t) for t in (True, False))
        assert train.classes == ("n01", "n02")
        assert [(train[i][1], round(float(train[i][0].mean()) * 255)) for i in range(2)] == [(0, 10), (1, 20)]
        assert [test[0][1], len(test)] == [1, 1]


def test_a_damaged_tiny_imagenet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"without Tiny ImageNet, .*no network.*wnids\.txt.*or .*tiny-imagenet-200\.zip; unpack"
    ):
        open_data(f"tiny_imagenet:{tmp_path}", RGB, train=True)
    home = _tiny(tmp_path)
    (home / "val" / "val_annotations.txt").write_text("val_0.png\tn99\t0\n")
    with pytest.raises(DataError, match="list of images is empty or damaged"):
        open_data(f"tiny_imagenet:{tmp_path}", RGB, train=False)


PLACES = {
    "cifar10": "cifar-10-python.tar.gz",
    "cifar100": "cifar-100-python.tar.gz",
    "fashion_mnist": "FashionMNIST/raw",
    "flowers102": "flowers-102/102flowers.tgz",
    "stanford_cars": "stanford_cars/devkit",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_failed_download_names_file_and_place(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "stanford_cars" and importlib.util.find_spec("scipy") is None:
        pytest.skip("scipy reads these labels")
    with pytest.raises(DataError) as caught:
        open_data(f"{name}:{tmp_path}", RGB, train=True)
    assert f"received data root {tmp_path}," in str(caught.value)
    assert PLACES[name] in str(caught.value)
    assert "put it there" in str(caught.value)
    assert capsys.readouterr().out == "", "standard output belongs to --json"


def test_unknown_names_are_answered_with_the_nearest_and_the_list() -> None:
    with pytest.raises(DataError, match=r"received data 'cifar11'; .*digits.*tiny_imagenet; did you mean cifar10"):
        open_data("cifar11", RGB, train=True)
    with pytest.raises(DataError, match="check the path"):
        open_data("/nowhere/at/all", RGB, train=True)


def test_a_colon_needs_a_folder_after_it() -> None:
    with pytest.raises(DataError, match="expected a folder after the colon; pass cifar10 or cifar10:ROOT"):
        open_data("cifar10:", RGB, train=True)


@pytest.mark.parametrize("name", ["fashion_mnist_mini", "digits", "glyphs", "mnist_5k", "solar_cells"])
def test_sets_without_files_take_no_root(name: str) -> None:
    with pytest.raises(DataError, match=f"received {name}:/tmp; expected {name} alone"):
        open_data(f"{name}:/tmp", GREY, train=True)


def test_a_registered_name_wins_over_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "fashion_mnist_mini").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "fashion_mnist_mini" / "1.png")
    assert len(open_data("fashion_mnist_mini", GREY, train=True)) == 4096
    assert len(open_data("./fashion_mnist_mini", GREY, train=True)) == 1


@pytest.mark.slow
def test_the_packaged_images_are_fashion_mnist(assets: Path) -> None:
    for train in (True, False):
        whole = datasets.FashionMNIST(assets, train=train)
        known = {image.numpy().tobytes(): int(label) for image, label in zip(whole.data, whole.targets, strict=True)}
        data = open_data("fashion_mnist_mini", GREY, train=train)
        assert len(open_data(f"fashion_mnist:{assets}", GREY, train=train)) == len(whole)
        for i in range(len(data)):
            image, label = data.source[i]
            assert known[np.asarray(image).tobytes()] == label


def test_a_path_is_a_folder_whatever_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    Image.new("L", (28, 28)).save(tmp_path / "digits" / "0.png")
    for place in (tmp_path / "digits", Path("digits")):
        assert len(open_data(place, GREY, train=True)) == 1
    with pytest.raises(DataError, match="received data 'nothing'; expected an image folder"):
        open_data(Path("nothing"), GREY, train=True)
