from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from hypercompress.data import Preprocess, open_data
from hypercompress.errors import DataError
from lightning_modules import images as module
from lightning_modules.data import ImageDataModule, Inputs
from lightning_modules.images import CachedImages, PreparedImages, open_part
from tests.lightning_modules.digits import GREY, opened


def test_images_in_memory_equal_those_prepared_one_by_one() -> None:
    preprocess = GREY.preprocess()
    cached, plain = (
        open_part("digits", preprocess, False, "none"),
        open_data("digits", preprocess, train=False),
    )
    assert isinstance(cached, CachedImages)
    assert len(cached) == len(plain)
    assert cached.classes == plain.classes
    for index in (0, 17, len(plain) - 1):
        assert torch.equal(cached[index][0], plain[index][0])
        assert int(cached[index][1]) == plain[index][1]


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"workers": -1}], ids=str)
def test_batches_that_cannot_be(wrong: dict[str, int]) -> None:
    with pytest.raises(DataError, match=r"received batch_size .* expected 1 image or more in a batch, and 0 workers"):
        opened(**wrong)


def test_batches_are_whole_shuffled_and_complete() -> None:
    images = opened(batch_size=100)
    sizes = [len(labels) for _, labels in images.train_dataloader()]
    assert sizes == [100] * 14  # of 1,437; the last 37 are dropped
    held_out = torch.cat([labels for _, labels in images.val_dataloader()])
    expected = [label for _, label in open_data("digits", GREY.preprocess(), train=False)]
    assert held_out.tolist() == expected  # in order, none dropped


def test_a_limit_is_the_same_subset_each_time() -> None:
    one, two = (opened(limit=50, batch_size=50).train_dataloader().dataset for _ in range(2))
    assert isinstance(one, CachedImages)
    assert isinstance(two, CachedImages)
    assert len(one) == 50
    assert torch.equal(one.images, two.images)
    assert [opened(limit=limit).training_images() for limit in (50, None)] == [50, 1437]
    assert len(opened(limit=50, batch_size=64).train_dataloader()) == 1  # smaller than a batch: not dropped
    assert len(opened(val_limit=7).val_dataloader().dataset) == 7  # type: ignore[arg-type]


@pytest.mark.parametrize("why", ["crop", "size"])
def test_what_cannot_be_kept_is_prepared_image_by_image(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if why == "size":
        monkeypatch.setattr(module, "CACHE_BYTES", 1000)
    images = opened(augment="crop" if why == "crop" else "none", batch_size=16, limit=32)
    assert not isinstance(images.train_dataloader().dataset, CachedImages)
    batch, labels = next(iter(images.train_dataloader()))
    assert batch.shape == (16, 1, 28, 28)
    assert labels.shape == (16,)


def test_the_size_of_a_set_is_that_of_what_the_limit_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHE_BYTES", 4 * 100 * 28 * 28)
    whole, some = open_part("digits", GREY.preprocess(), True, "flip"), opened(limit=100)
    assert isinstance(whole, PreparedImages)
    kept = some.train_dataloader().dataset
    assert isinstance(kept, CachedImages)
    preprocess = GREY.preprocess()
    every = open_data("digits", preprocess, train=True)
    place = int(torch.randperm(len(every), generator=torch.Generator().manual_seed(0))[7])
    assert torch.equal(kept.images[7], every[place][0])


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for index in range(5):
        Image.fromarray(np.full((30, 30), 40 * index, np.uint8)).save(tmp_path / f"{index}.png")
    images = opened(data=str(tmp_path), batch_size=2)
    assert [labels.tolist() for _, labels in images.val_dataloader()] == [[-1, -1], [-1, -1], [-1]]


@pytest.mark.parametrize("change", ["class", "image", "content", "folder"])
def test_a_folder_that_changed_is_read_again(change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(place: Path, grey: int) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((28, 28), grey, np.uint8)).save(place)

    def read() -> tuple[list[int], list[int]]:
        images, labels = next(iter(opened(data="photos", batch_size=8).val_dataloader()))
        grey = (images.amax((1, 2, 3)) * GREY.std[0] + GREY.mean[0]) * 255
        return grey.round().int().tolist(), labels.tolist()

    write(tmp_path / "photos/b/0.png", 10)
    write(tmp_path / "photos/c/0.png", 20)
    write(tmp_path / "other/photos/b/0.png", 90)
    monkeypatch.chdir(tmp_path)
    assert read() == ([10, 20], [0, 1])
    if change == "class":
        write(tmp_path / "photos/a/0.png", 30)
    elif change == "image":
        write(tmp_path / "photos/b/1.png", 30)
    elif change == "content":
        write(tmp_path / "photos/b/0.png", 30)
    else:
        monkeypatch.chdir(tmp_path / "other")
    expected = {"class": ([30, 10, 20], [0, 1, 2]), "image": ([10, 30, 20], [0, 0, 1])}
    expected |= {"content": ([30, 20], [0, 1]), "folder": ([90], [0])}
    assert read() == expected[change]


def test_other_validation_data() -> None:
    images = opened(val_data="fashion_mnist_mini", batch_size=8)
    expected = open_data("fashion_mnist_mini", GREY.preprocess(), train=False)[0][0]
    assert torch.equal(next(iter(images.val_dataloader()))[0][0], expected)


def test_preparation_is_that_of_the_model_with_overrides(folders: tuple[Path, Path]) -> None:
    like = Inputs(like=str(folders[0])).preprocess()
    assert (like.input_size, like.mean, like.std) == ((1, 28, 28), (0.286,), (0.353,))
    assert Inputs(like=str(folders[0]), mean=(0.5,)).preprocess().mean == (0.5,)

    class Known(nn.Module):
        pretrained_cfg = {"input_size": (3, 8, 8), "mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)}  # noqa: RUF012

    assert Inputs().preprocess(Known()) == Preprocess((3, 8, 8), (0.1, 0.2, 0.3), (1.0, 1.0, 1.0))


def test_nothing_says_how_to_prepare() -> None:
    with pytest.raises(DataError, match="without input_size, mean, std"):
        ImageDataModule("digits").setup("fit")


def test_a_limit_below_one() -> None:
    with pytest.raises(DataError, match="limit of 0 images; expected at least 1"):
        opened(limit=0)


def test_loaders_before_setup() -> None:
    loaders = (ImageDataModule.train_dataloader, ImageDataModule.val_dataloader, ImageDataModule.test_dataloader)
    for loader in loaders:
        with pytest.raises(DataError, match="before setup"):
            loader(ImageDataModule("digits"))


def test_validation_alone_opens_no_training_images() -> None:
    images = ImageDataModule("digits", inputs=GREY)
    images.setup("validate")
    assert images.training_images() is None
    assert isinstance(images.test_dataloader(), DataLoader)
    with pytest.raises(DataError, match="before setup"):
        images.train_dataloader()


def test_a_test_reads_the_test_images_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    greys = {"train": 10, "val": 20, "test": 30}
    for part, grey in greys.items():
        for name in ("bee", "cat") if part == "test" else ("ant", "bee", "cat"):
            place = tmp_path / part / name / "1.png"
            place.parent.mkdir(parents=True)
            Image.new("L", (28, 28), grey).save(place)

    def read(stage: str, **options: object) -> tuple[int, list[int]]:
        data = ImageDataModule(str(tmp_path), inputs=GREY, **options)
        data.setup("fit")
        data.setup(stage)
        data.number_by((), 3, followed=False)
        images, labels = next(iter(data.test_dataloader() if stage == "test" else data.val_dataloader()))
        return round(float((images[0] * GREY.std[0] + GREY.mean[0]).mean()) * 255), labels.tolist()

    with caplog.at_level("INFO"):
        assert read("validate") == (20, [0, 1, 2])
        assert "tested on" not in caplog.text
        assert read("test") == (30, [1, 2])
        assert f"tested on 2 images of {tmp_path / 'test'}" in caplog.text
        assert read("test", val_data=str(tmp_path / "val")) == (20, [0, 1, 2])
        assert f"tested on 3 images of {tmp_path / 'val'}" in caplog.text
        ImageDataModule("digits", inputs=GREY).setup("test")
        assert "tested on 360 images of digits" in caplog.text


def test_how_images_are_prepared_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    images = ImageDataModule("digits", inputs=GREY)
    with caplog.at_level("INFO"):
        for stage in ("fit", "validate"):
            images.setup(stage)
    assert caplog.text.count("images are prepared as grey, 28 x 28 pixels, mean [0.286], std [0.353]") == 1


def test_what_a_run_reads_ahead_is_what_it_trains_on() -> None:
    images = opened(batch_size=32, augment="flip")
    loader = images.train_dataloader()
    ahead = [batch for batch, _ in images.beginning()]
    assert loader.state_dict()["done"] == 0
    assert all(torch.equal(ours, theirs) for ours, (theirs, _) in zip(ahead, loader, strict=True))
