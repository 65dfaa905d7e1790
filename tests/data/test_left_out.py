"""Images of a folder that are left out are named: ranges that are unknown, links to nothing, other kinds of files."""

import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hypercompress.data import Preprocess, folder, open_data

PLAIN = Preprocess((1, 8, 8), (0.0,), (1.0,))


def paint(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), 128).save(path)
    return path


@pytest.mark.parametrize("header_only", [False, True])
def test_tiffs_that_would_come_out_dark_or_inverted_are_left_out(
    header_only: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if header_only:
        monkeypatch.setattr(folder, "DECODED_AT_MOST", 0)
    for name, tag, old, new in [("good", 258, 16, 16), ("twelve", 258, 16, 12), ("white_is_zero", 262, 1, 0)]:
        Image.fromarray(np.full((8, 8), 1000, np.uint16)).save(tmp_path / f"{name}.tif")
        written = (tmp_path / f"{name}.tif").read_bytes()
        entry, changed = (struct.pack("<HHIH", tag, 3, 1, value) for value in (old, new))
        assert entry in written
        (tmp_path / f"{name}.tif").write_bytes(written.replace(entry, changed))
    with pytest.warns(UserWarning, match=r"skipped 2 of 3 images: twelve\.tif, white_is_zero\.tif$"):
        assert len(open_data(str(tmp_path), PLAIN, train=True)) == 1


@pytest.mark.parametrize("below", ["", "a"])
def test_links_to_nothing_and_images_of_other_kinds_are_named(below: str, tmp_path: Path) -> None:
    place = tmp_path / below
    for name in ("1.jpe", "2.jfif", "3.GIF"):
        paint(place / "real.jpg").rename(place / name)
    paint(tmp_path / below / "4.png")
    (place / "gone.png").symlink_to("nowhere.png")
    (place / "notes.pdf").write_bytes(b"no image")
    skipped = [str(Path(below) / name) for name in ("gone.png", "3.GIF")]
    with pytest.warns(UserWarning, match=f"skipped 2 of 5 images: {', '.join(skipped)}$"):
        data = open_data(str(tmp_path), PLAIN, train=True)
    assert (len(data), data.skipped) == (3, skipped)


def test_a_folder_of_other_kinds_alone_is_still_no_class(tmp_path: Path) -> None:
    paint(tmp_path / "a" / "1.png")
    paint(tmp_path / "icons" / "1.gif")
    with pytest.warns(UserWarning, match="left out 1 folder without images: icons$"):
        assert open_data(str(tmp_path), PLAIN, train=True).classes == ("a",)
