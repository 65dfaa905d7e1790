"""What meta-training draws its steps from: settings out of range, and which images each teacher is given."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hypercompress import from_pretrained
from hypercompress.data import Preprocess
from hypercompress.errors import DataError
from lightning_modules import meta_training
from lightning_modules.episodes import Episodes, Member
from lightning_modules.index import read_index
from lightning_modules.meta_training import MetaTraining
from lightning_modules.optimization import SettingError
from lightning_modules.resuming import require_same_run


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ({"images": 0}, r"images 0, expected 1 or more"),
        ({"calibration": 0}, r"calibration 0, expected 1 or more"),
        ({"refit_images": 0, "validation": -1}, r"refit_images 0, expected 1 or more; validation -1, expected 1"),
        ({"free": 2.0}, r"free 2, expected a share in \[0, 1\]"),
        ({"refit": float("nan")}, r"refit nan, expected a share"),
        ({"look_ahead": ()}, r"look_ahead \[\], expected at least one"),
        ({"look_ahead": (0, -1)}, r"look_ahead \[0, -1\], expected at least one number of steps, each 0 or more"),
        ({"validation_steps": -1}, r"validation_steps -1, expected 0 or more"),
    ],
)
def test_episodes_that_cannot_be_drawn_are_refused(wrong: dict[str, Any], fault: str) -> None:
    with pytest.raises(SettingError, match=f"received episodes with {fault}.*; change model.episodes"):
        Episodes(**wrong)


def test_an_index_without_a_column_or_with_a_short_row_is_refused(zoo: Path) -> None:
    (zoo / "zoo.csv").write_text("name,family,data\none,test,fashion_mnist_mini\n")
    with pytest.raises(DataError, match=r"zoo\.csv without the columns split; expected name, data and split"):
        read_index(zoo)
    (zoo / "zoo.csv").write_text("")
    with pytest.raises(DataError, match="without the columns data, name, split"):
        read_index(zoo)
    (zoo / "zoo.csv").write_text("name,data,split\none,fashion_mnist_mini,train\ntwo,fashion_mnist_mini\n")
    with pytest.raises(DataError, match="whose row 2 has not 3 cells; expected one in each column"):
        read_index(zoo)


def members(zoo: Path, count: int = 1) -> list[Member]:
    system = MetaTraining(zoo, Path("out"), episodes=Episodes(calibration=32, refit_images=32, validation=16))
    return [system.member(entry) for entry in read_index(zoo)[:count]]


def brightness(images: Tensor) -> Tensor:
    return images.flatten(1).mean(1)


def test_students_are_judged_on_a_draw_of_the_held_out_images(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders are sorted by class, as these images are by brightness: the first ones are all of one kind."""
    images = meta_training._images

    def in_order(data: str, preprocess: Preprocess, train: bool) -> Tensor:
        found = images(data, preprocess, train)
        return found[brightness(found).argsort()]

    monkeypatch.setattr(meta_training, "_images", in_order)
    (first,), (again,) = members(zoo), members(zoo)
    assert torch.equal(first.held_out, again.held_out)
    whole = in_order("fashion_mnist_mini", Preprocess((1, 28, 28), (0.286,), (0.353,)), False)
    quarters = torch.bucketize(brightness(first.held_out), brightness(whole).quantile(torch.tensor([0.25, 0.5, 0.75])))
    assert len(quarters) == 16
    assert set(quarters.tolist()) == {0, 1, 2, 3}


def test_where_both_parts_are_one_set_the_judging_images_are_not_the_calibration(
    zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image folder without parts."""
    images = meta_training._images
    monkeypatch.setattr(meta_training, "_images", lambda data, preprocess, train: images(data, preprocess, False))
    (member,) = members(zoo)
    same = (member.held_out[:, None] == member.calibration).flatten(2).all(2).any(1)
    assert int(same.sum()) < 4


def test_teachers_of_one_data_set_share_its_images(zoo: Path) -> None:
    """Each with the places that were not taken for calibration; batches are of these."""
    one, two = members(zoo, 2)
    assert one.train.data_ptr() == two.train.data_ptr()
    assert torch.equal(one.places, two.places)
    assert len(one.places) == len(one.train) - 32
    assert one.places.unique().numel() == len(one.places)
    left_out = torch.ones(len(one.train), dtype=torch.bool)
    left_out[one.places] = False
    assert torch.equal(brightness(one.train[left_out]).sort().values, brightness(one.calibration).sort().values)
    system = MetaTraining(zoo, Path("out"), episodes=Episodes(images=24))
    few = Member(one.case, one.calibration, one.train, one.places[:5], one.held_out, one.weights)
    batch = system._batch(few, torch.Generator().manual_seed(0))
    assert len(batch) == 24
    assert set(brightness(batch).tolist()) == set(brightness(one.train[one.places[:5]]).tolist())


def test_a_teacher_that_was_trained_anew_is_another_one(zoo: Path, tmp_path: Path) -> None:
    """Its name is the same; a zoo that was moved is."""

    def identity(folder: Path) -> dict[str, str]:
        system = MetaTraining(folder, Path("out"), episodes=Episodes(calibration=32, refit_images=8, validation=8))
        system.setup("fit")
        return system.identity()

    before = identity(zoo)
    moved = zoo.rename(tmp_path / "moved")
    require_same_run(identity(moved), before)
    teacher = from_pretrained(moved / "one")
    with torch.no_grad():
        next(teacher.parameters()).add_(1e-3)
    teacher.save_pretrained(moved / "one", overwrite=True)
    with pytest.raises(SettingError, match=r"another run: weights of one \w{12} instead of \w{12}; expected"):
        require_same_run(identity(moved), before)
