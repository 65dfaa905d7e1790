"""The five founding sets from small copies on disk in the real layout, sums checked; no test image trains."""

import hashlib
import io
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from hypercompress.data import Preprocess, open_data, read_pool
from hypercompress.errors import DataError

RGB = Preprocess((3, 8, 8), (0.0,) * 3, (1.0,) * 3)
CIFAR = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Below torchvision's checks and archives, so that these run as they do for users."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise URLError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _shade(value: int, size: int = 32) -> Image.Image:
    return Image.new("RGB", (size, size), (value, value, value))


def _cifar(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches as distributed, each image a shade of its own, inside the archive; torchvision expects their sums."""
    kind, fine = CIFAR[name], name == "cifar100"
    classes = [f"class {i}" for i in range(100 if fine else 10)]
    batches, sums, shade = {}, {}, 0
    for batch in [*(entry[0] for entry in kind.train_list), *(entry[0] for entry in kind.test_list)]:
        labels = [(shade + i) % len(classes) for i in range(4)]
        pixels = np.repeat(np.arange(shade, shade + 4, dtype=np.uint8)[:, None], 3072, axis=1)
        batches[batch], shade = pickle.dumps({"data": pixels, "fine_labels" if fine else "labels": labels}), shade + 4
    batches[kind.meta["filename"]] = pickle.dumps({kind.meta["key"]: classes})
    with tarfile.open(root / kind.filename, "w:gz") as archive:
        for batch, content in batches.items():
            member, sums[batch] = tarfile.TarInfo(f"{kind.base_folder}/{batch}"), _md5(content)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    monkeypatch.setattr(kind, "tgz_md5", _md5((root / kind.filename).read_bytes()))
    monkeypatch.setattr(kind, "train_list", [[entry[0], sums[entry[0]]] for entry in kind.train_list])
    monkeypatch.setattr(kind, "test_list", [[entry[0], sums[entry[0]]] for entry in kind.test_list])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": sums[kind.meta["filename"]]})


def _cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _cifar("cifar10", root, monkeypatch)


def _cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _cifar("cifar100", root, monkeypatch)


def _flowers(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive of images, and the two tables beside it."""
    savemat = pytest.importorskip("scipy.io", reason="scipy reads these labels").savemat
    home = root / "flowers-102"
    home.mkdir()
    with tarfile.open(home / "102flowers.tgz", "w:gz") as archive:
        for i in range(1, 9):
            content = io.BytesIO()
            _shade(20 * i).save(content, "jpeg")
            member = tarfile.TarInfo(f"jpg/image_{i:05d}.jpg")
            member.size = content.tell()
            content.seek(0)
            archive.addfile(member, content)
    savemat(home / "imagelabels.mat", {"labels": np.array([3, 1, 2, 102, 3, 1, 2, 102])})
    savemat(
        home / "setid.mat",
        {"trnid": np.array([[1, 2]]), "valid": np.array([[3]]), "tstid": np.array([[4, 5, 6, 7, 8]])},
    )
    files = {key: (name, _md5((home / name).read_bytes())) for key, (name, _) in datasets.Flowers102._file_dict.items()}
    monkeypatch.setattr(datasets.Flowers102, "_file_dict", files)


def _cars(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    savemat = pytest.importorskip("scipy.io", reason="scipy reads these labels").savemat
    home = root / "stanford_cars"
    (home / "devkit").mkdir(parents=True)
    kind = [(name, object) for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
    tables = {"cars_train": "devkit/cars_train_annos", "cars_test": "cars_test_annos_withlabels"}
    for start, (folder, table) in enumerate(tables.items()):
        (home / folder).mkdir()
        rows = np.array([(1, 1, 9, 9, label, f"{label:05d}.jpg") for label in (1, 2)], dtype=kind)
        savemat(home / f"{table}.mat", {"annotations": rows})
        for label in (1, 2):
            _shade(60 * (2 * start + label)).save(home / folder / f"{label:05d}.jpg")
    savemat(home / "devkit" / "cars_meta.mat", {"class_names": np.array(["AM General", "Acura"], dtype=object)})


def _tiny(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The archive as distributed: boxes beside the images, tabs in the table, test images without labels."""
    path = root / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(path, "w") as archive:

        def add(name: str, shade: int) -> None:
            content = io.BytesIO()
            _shade(shade, 64).save(content, "jpeg")
            archive.writestr(f"tiny-imagenet-200/{name}", content.getvalue())

        archive.writestr("tiny-imagenet-200/wnids.txt", "n02\nn01\n")
        archive.writestr("tiny-imagenet-200/words.txt", "n01\tgoldfish\nn02\ttoad\n")
        for index, name in enumerate(("n01", "n02")):
            for i in range(2):
                add(f"train/{name}/images/{name}_{i}.JPEG", 20 * (1 + 2 * index + i))
            archive.writestr(f"tiny-imagenet-200/train/{name}/{name}_boxes.txt", f"{name}_0.JPEG\t0\t10\t63\t58\n")
        for i in range(2):
            add(f"val/images/val_{i}.JPEG", 140 + 20 * i)
        rows = "val_0.JPEG\tn02\t0\t32\t44\t62\nval_1.JPEG\tn01\t52\t55\t57\t59\n"
        archive.writestr("tiny-imagenet-200/val/val_annotations.txt", rows)
        add("test/images/test_0.JPEG", 250)
    monkeypatch.setattr("hypercompress.data.tiny_imagenet.MD5", _md5(path.read_bytes()))


FOUNDING = {
    "cifar10": (_cifar10, 20, 4),
    "cifar100": (_cifar100, 4, 4),
    "flowers102": (_flowers, 2, 5),
    "stanford_cars": (_cars, 2, 2),
    "tiny_imagenet": (_tiny, 4, 2),
}
Maker = Callable[[Path, pytest.MonkeyPatch], None]


@pytest.mark.parametrize(("name", "make", "train", "test"), [(name, *rest) for name, rest in FOUNDING.items()])
def test_no_test_image_is_a_training_image(
    name: str, make: Maker, train: int, test: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Archives are unpacked without a network; then each shade is in one pool only."""
    make(tmp_path, monkeypatch)
    pools = [read_pool(name, open_data(f"{name}:{tmp_path}", RGB, train=t)) for t in (True, False)]
    assert [len(pool) for pool in pools] == [train, test]
    shades = [{round(float(image.mean()) * 255) for image in pool.images} for pool in pools]
    assert [len(found) for found in shades] == [train, test], "each image has its own shade"
    assert not shades[0] & shades[1]
    again = read_pool(name, open_data(f"{name}:{tmp_path}", RGB, train=True))
    assert torch.equal(again.images, pools[0].images), "what was unpacked is read"


def test_labels_are_those_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, (make, *_) in FOUNDING.items():
        (tmp_path / name).mkdir()
        make(tmp_path / name, monkeypatch)

    def pairs(name: str, train: bool) -> list[tuple[int, int]]:
        data = open_data(f"{name}:{tmp_path / name}", RGB, train=train)
        return [(round(float(data[i][0].mean()) * 255), data[i][1]) for i in range(len(data))]

    assert pairs("cifar10", True) == [(i, i % 10) for i in range(20)]
    assert pairs("cifar100", False) == [(i, i) for i in range(4, 8)]
    assert pairs("flowers102", True) == [(20, 2), (40, 0)]
    assert pairs("flowers102", False) == [(80, 101), (100, 2), (120, 0), (140, 1), (160, 101)]
    assert pairs("stanford_cars", False) == [(180, 0), (240, 1)]
    assert pairs("tiny_imagenet", True) == [(20, 0), (40, 0), (60, 1), (80, 1)]
    assert pairs("tiny_imagenet", False) == [(140, 1), (160, 0)]


ARCHIVES = {
    "cifar10": "cifar-10-python.tar.gz",
    "cifar100": "cifar-100-python.tar.gz",
    "flowers102": "flowers-102/102flowers.tgz",
    "tiny_imagenet": "tiny-imagenet-200.zip",
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_with_another_sum_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FOUNDING[name][0](tmp_path, monkeypatch)
    archive = tmp_path / ARCHIVES[name]
    archive.write_bytes(archive.read_bytes()[:-7])
    with pytest.raises(DataError) as caught:
        open_data(f"{name}:{tmp_path}", RGB, train=True)
    assert "cannot be downloaded" in str(caught.value)
    assert ARCHIVES[name] in str(caught.value)


@pytest.mark.parametrize("name", CIFAR)
def test_a_damaged_batch_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _cifar(name, tmp_path, monkeypatch)
    open_data(f"{name}:{tmp_path}", RGB, train=True)
    batch = tmp_path / CIFAR[name].base_folder / CIFAR[name].train_list[0][0]
    batch.write_bytes(batch.read_bytes().replace(b"\x00", b"\x01", 1))
    (tmp_path / CIFAR[name].filename).unlink()
    with pytest.raises(DataError, match="missing or corrupt and cannot be downloaded"):
        open_data(f"{name}:{tmp_path}", RGB, train=True)


def test_an_archive_that_lacks_a_part_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny-imagenet-200.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny-imagenet-200/wnids.txt", "n01\n")
    monkeypatch.setattr("hypercompress.data.tiny_imagenet.MD5", _md5(path.read_bytes()))
    with pytest.raises(DataError, match=r"received an archive without all of .*val_annotations.txt in it; replace"):
        open_data(f"tiny_imagenet:{tmp_path}", RGB, train=True)
