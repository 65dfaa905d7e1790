"""Image folders: layouts, labels, damaged files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hypercompress.data import Preprocess, check_splits, folder, open_data
from hypercompress.errors import DataError

PLAIN = Preprocess((1, 8, 8), (0.0,), (1.0,))


def paint(path: Path, grey: int = 128, side: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (side, side), grey).save(path)
    return path


def noisy_jpeg(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_class_folders_are_labels_in_sorted_order(tmp_path: Path) -> None:
    paint(tmp_path / "zebra" / "1.png", 200)
    paint(tmp_path / "ant" / "deep" / "2.png", 50)
    paint(tmp_path / "ant" / "1.png", 100)
    data = open_data(str(tmp_path), PLAIN, train=True)
    assert data.classes == ("ant", "zebra")
    assert data.labelled
    assert [data[i][1] for i in range(len(data))] == [0, 0, 1]
    assert [round(float(data[i][0][0, 0, 0]) * 255) for i in range(3)] == [100, 50, 200]


def test_a_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    for i in range(3):
        paint(tmp_path / f"{i}.png")
    (tmp_path / "notes.txt").write_text("no image")
    data = open_data(str(tmp_path), PLAIN, train=False)
    assert (len(data), data.labelled, data.classes, data.skipped) == (3, False, (), [])
    assert data[1][1] == -1


@pytest.mark.parametrize(("held_out", "expected"), [(["val"], "val"), (["test"], "test"), (["val", "test"], "val")])
def test_splits_are_chosen_by_purpose(held_out: list[str], expected: str, tmp_path: Path) -> None:
    greys = {"train": 10, "val": 20, "test": 30}
    for split in ["train", *held_out]:
        paint(tmp_path / split / "a" / "1.png", greys[split])
    for train, split in [(True, "train"), (False, expected)]:
        data = open_data(str(tmp_path), PLAIN, train=train)
        assert round(float(data[0][0].mean()) * 255) == greys[split]
        assert data.classes == ("a",)


@pytest.mark.parametrize(
    ("there", "expected"),
    [(["val", "test"], "test"), (["Validation", "Testing"], "Testing"), (["val"], "val"), (["test"], "test")],
)
def test_a_test_asks_for_the_test_images(there: list[str], expected: str, tmp_path: Path) -> None:
    """Of the classes of the training images, as the others are numbered."""
    for name in ("train", *there):
        paint(tmp_path / name / "bee" / f"{name}.png", 200)
    paint(tmp_path / "train" / "ant" / "1.png")
    data = open_data(str(tmp_path), PLAIN, train=False, test=True)
    assert [path.parent.parent.name for path in data.source.paths] == [expected]
    assert (data.classes, data[0][1]) == (("ant", "bee"), 1)
    assert folder.folder_read(tmp_path, train=False, test=True) == tmp_path / expected


@pytest.mark.parametrize(
    ("training", "held_out"),
    [("train", "valid"), ("train", "validation"), ("Train", "Val"), ("training", "testing"), ("TRAINING", "Test")],
)
def test_a_split_has_more_than_one_name(training: str, held_out: str, tmp_path: Path) -> None:
    for name, grey in [(training, 10), (held_out, 20)]:
        for label in "ab":
            paint(tmp_path / name / label / "1.png", grey)
    for train, grey in [(True, 10), (False, 20)]:
        data = open_data(str(tmp_path), PLAIN, train=train)
        assert (data.classes, len(data)) == (("a", "b"), 2)
        assert round(float(data[0][0].mean()) * 255) == grey


@pytest.mark.parametrize("held_out", ["ab", "a"])
def test_a_split_of_an_unknown_name_is_no_class(held_out: str, tmp_path: Path) -> None:
    for name, labels in (("train", "ab"), ("holdout", held_out)):
        for label in labels:
            paint(tmp_path / name / label / "1.png")
    with pytest.raises(DataError, match=r"with holdout beside train, of the same classes; .* val, valid, .*; rename"):
        open_data(str(tmp_path), PLAIN, train=True)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    paint(tmp_path / "train" / "1.png")
    paint(tmp_path / "plane" / "1.png")
    assert open_data(str(tmp_path), PLAIN, train=True).classes == ("plane", "train")


def test_labels_mean_the_same_in_both_splits(tmp_path: Path) -> None:
    for name in "abc":
        paint(tmp_path / "train" / name / "1.png")
    paint(tmp_path / "val" / "c" / "1.png")
    data = open_data(str(tmp_path), PLAIN, train=False)
    assert (data.classes, data[0][1]) == (("a", "b", "c"), 2)


def test_a_class_that_train_lacks_is_refused(tmp_path: Path) -> None:
    paint(tmp_path / "train" / "a" / "1.png")
    paint(tmp_path / "val" / "b" / "1.png")
    with pytest.raises(DataError, match=r"with classes b that .*train lacks"):
        open_data(str(tmp_path), PLAIN, train=False)


def test_a_class_in_another_unicode_form_is_the_same(tmp_path: Path) -> None:
    for name in ("bar", "caf\u00e9", "zoo"):
        paint(tmp_path / "train" / name / "1.png")
    paint(tmp_path / "val" / "cafe\u0301" / "1.png", 20)  # as macOS writes it
    for train, labels in [(True, [0, 1, 2]), (False, [1])]:
        data = open_data(str(tmp_path), PLAIN, train=train)
        assert (data.classes, data.labels.tolist()) == (("bar", "caf\u00e9", "zoo"), labels)
    check_splits(tmp_path)
    paint(tmp_path / "train" / "cafe\u0301" / "1.png")  # whose twin stands beside it
    assert open_data(str(tmp_path), PLAIN, train=True).labels.tolist() == [0, 1, 2, 3]
    assert open_data(str(tmp_path), PLAIN, train=False).labels.tolist() == [1]


def test_labels_of_the_held_out_images_alone(tmp_path: Path) -> None:
    paint(tmp_path / "train" / "1.png")
    for name in "ab":
        paint(tmp_path / "val" / name / "1.png")
    check_splits(tmp_path)
    assert not open_data(str(tmp_path), PLAIN, train=True).labelled
    held_out = open_data(str(tmp_path), PLAIN, train=False)
    assert (held_out.classes, held_out.labels.tolist()) == (("a", "b"), [0, 1])


def test_a_folder_without_images_is_no_class(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        paint(tmp_path / name / "1.png")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "1.xml").write_text("no image")
    paint(tmp_path / "__MACOSX" / "._1.png")
    paint(tmp_path / "cat" / ".ipynb_checkpoints" / "1-checkpoint.png")
    paint(tmp_path / ".thumbnails" / "1.png")
    with pytest.warns(UserWarning, match=r"left out 2 folders without images: __MACOSX, annotations$"):
        data = open_data(str(tmp_path), PLAIN, train=True)
    assert (data.classes, data.labels.tolist()) == (("cat", "dog"), [0, 1])


def test_a_class_may_have_images_in_one_split_only(tmp_path: Path) -> None:
    for split, names in {"train": "ac", "val": "bc"}.items():
        for name in names:
            paint(tmp_path / split / name / "1.png")
    for name in "bd":
        (tmp_path / "train" / name).mkdir()
    (tmp_path / "val" / "annotations").mkdir()
    for train, labels in [(True, [0, 2]), (False, [1, 2])]:
        with pytest.warns(UserWarning, match=rf"^{tmp_path}: left out 1 folder without images: train/d$"):
            data = open_data(str(tmp_path), PLAIN, train=train)
        assert (data.classes, data.labels.tolist()) == (("a", "b", "c"), labels)


def test_a_split_without_images_is_still_a_split(tmp_path: Path) -> None:
    paint(tmp_path / "train" / "a" / "1.png")
    (tmp_path / "val").mkdir()
    assert open_data(str(tmp_path), PLAIN, train=True).classes == ("a",)
    with pytest.raises(DataError, match="val, which holds no images"):
        open_data(str(tmp_path), PLAIN, train=False)


def test_links_to_folders_are_followed_once_and_never_back_up(tmp_path: Path) -> None:
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "root"
    for name in ("elsewhere/deep/one.png", "root/a/own.png", "root/b/other.png"):
        paint(tmp_path / name)
    for name, target in {"a/linked": elsewhere, "a/again": elsewhere / "deep", "a/up": root, "c": elsewhere}.items():
        (root / name).symlink_to(target, target_is_directory=True)
    for name, target in {"round": elsewhere, "up": root}.items():
        (elsewhere / name).symlink_to(target, target_is_directory=True)
    data = open_data(str(root), PLAIN, train=True)
    assert data.classes == ("a", "b", "c")  # a class may be a link itself
    assert [data[i][1] for i in range(len(data))] == [0, 0, 1, 2]
    (root / "b" / "another").symlink_to(root / "b" / "real", target_is_directory=True)
    paint(root / "b" / "real" / "1.png")
    assert root / "b" / "real" / "1.png" in open_data(str(root), PLAIN, train=True).source.paths, "not the link's"


def test_a_lonely_split_is_no_class(tmp_path: Path) -> None:
    paint(tmp_path / "train" / "a" / "1.png")
    with pytest.raises(DataError, match="with train inside; expected train beside val or test; pass one"):
        open_data(str(tmp_path), PLAIN, train=True)


def test_flat_splits_are_unlabelled(tmp_path: Path) -> None:
    paint(tmp_path / "train" / "1.png")
    paint(tmp_path / "val" / "1.png")
    assert not open_data(str(tmp_path), PLAIN, train=True).labelled


@pytest.mark.parametrize("header_only", [False, True])
def test_unreadable_images_are_named_and_left_out(
    header_only: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if header_only:
        monkeypatch.setattr(folder, "DECODED_AT_MOST", 0)
    paint(tmp_path / "b" / "good.png")
    (tmp_path / "a").mkdir()
    for i in range(7):
        (tmp_path / "a" / f"bad{i}.jpg").write_bytes(b"not an image")
    with pytest.warns(UserWarning, match=r"skipped 7 of 8 images: .*bad0.*bad4\.jpg and 2 more$"):
        data = open_data(str(tmp_path), PLAIN, train=True)
    assert data.skipped == [f"a/bad{i}.jpg" for i in range(7)]
    assert (len(data), data[0][1], data.classes) == (1, 1, ("a", "b"))


@pytest.mark.parametrize(("name", "dtype"), [("a.pgm", np.uint16), ("a.png", np.uint16), ("a.tif", np.int32)])
def test_sixteen_bits_are_scaled_not_clipped(name: str, dtype: type, tmp_path: Path) -> None:
    image = Image.fromarray(np.full((8, 8), 100 * 256, dtype))
    image.save(tmp_path / name)
    data = open_data(str(tmp_path), PLAIN, train=True)
    assert round(float(data[0][0].mean()) * 255) == 100


@pytest.mark.parametrize("header_only", [False, True])
def test_images_of_unknown_range_are_named_and_left_out(
    header_only: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if header_only:
        monkeypatch.setattr(folder, "DECODED_AT_MOST", 0)
    paint(tmp_path / "good.png")
    Image.fromarray(np.full((8, 8), 0.5, np.float32)).save(tmp_path / "float.tif")
    Image.fromarray(np.full((8, 8), 70_000, np.int32)).save(tmp_path / "large.tif")
    Image.fromarray(np.full((8, 8), -1, np.int32)).save(tmp_path / "negative.tif")
    with pytest.warns(UserWarning, match=r"skipped 3 of 4 images: float\.tif, large\.tif, negative\.tif$"):
        assert len(open_data(str(tmp_path), PLAIN, train=True)) == 1


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_image_is_noticed_before_use(suffix: str, tmp_path: Path) -> None:
    good, bad = noisy_jpeg(tmp_path / f"a.{suffix}"), noisy_jpeg(tmp_path / f"b.{suffix}")
    bad.write_bytes(good.read_bytes()[: good.stat().st_size // 2])
    with pytest.warns(UserWarning, match=f"skipped 1 of 2 images: b.{suffix}"):
        data = open_data(str(tmp_path), PLAIN, train=True)
    assert len(data) == 1


def test_a_tiny_jpeg_is_readable(tmp_path: Path) -> None:
    paint(tmp_path / "a.jpg", side=3)
    assert open_data(str(tmp_path), PLAIN, train=True)[0][0].shape == (1, 8, 8)


def test_an_image_that_breaks_later_is_named(tmp_path: Path) -> None:
    path = paint(tmp_path / "a.png")
    data = open_data(str(tmp_path), PLAIN, train=True)
    path.write_bytes(b"overwritten")
    with pytest.raises(DataError, match=r"a\.png, which cannot be decoded; expected an image; remove it"):
        data[0]


def test_images_beside_class_folders_are_not_lost_in_silence(tmp_path: Path) -> None:
    paint(tmp_path / "a" / "1.png")
    paint(tmp_path / "loose.png")
    with pytest.warns(UserWarning, match=r"skipped 1 of 2 images: loose\.png"):
        assert len(open_data(str(tmp_path), PLAIN, train=True)) == 1


def test_empty_and_wholly_unreadable_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="which holds no images; expected files ending in"):
        open_data(str(tmp_path), PLAIN, train=True)
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="which holds no images"):
        open_data(str(tmp_path), PLAIN, train=True)
    (tmp_path / "a" / "x.png").write_bytes(b"no")
    with pytest.raises(DataError, match=r"none of 1 images can be read: a/x\.png"):
        open_data(str(tmp_path), PLAIN, train=True)


def test_a_path_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="which is no folder"):
        folder.open_folder(tmp_path / "absent", PLAIN, train=True)


def test_augmented_crops_vary(tmp_path: Path) -> None:
    noisy_jpeg(tmp_path / "a.jpg")
    data = open_data(str(tmp_path), PLAIN, train=True, augment=True)
    assert not torch.equal(data[0][0], data[0][0])


@pytest.mark.slow
def test_real_photographs(assets: Path) -> None:
    for train, least in [(True, 200), (False, 100)]:
        data = open_data(str(assets / "photos"), Preprocess((3, 64, 64), (0.5,) * 3, (0.5,) * 3), train=train)
        assert len(data) >= least
        assert len(data.classes) == 10
        assert data[0][0].shape == (3, 64, 64)
