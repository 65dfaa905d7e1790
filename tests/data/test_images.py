"""The loader: order, subsets, shapes, refusals."""

import pytest
import torch
from PIL import Image

from hypercompress.data import ImageData, Preprocess, loader, mismatch, open_data
from hypercompress.errors import DataError


@pytest.fixture(scope="module")
def data() -> ImageData:
    return open_data("fashion_mnist_mini", Preprocess((1, 28, 28), (0.0,), (1.0,)), train=False)


def test_batches_are_pairs_of_images_and_labels(data: ImageData) -> None:
    batches = list(loader(data, batch_size=300, limit=700))
    assert [tuple(images.shape) for images, _ in batches] == [(300, 1, 28, 28), (300, 1, 28, 28), (100, 1, 28, 28)]
    assert all(isinstance(batch, tuple) for batch in batches)
    assert all(labels.dtype == torch.int64 and labels.shape == images.shape[:1] for images, labels in batches)


def test_images_come_in_the_models_precision(data: ImageData) -> None:
    images, labels = next(iter(loader(data, batch_size=4, dtype=torch.float16)))
    assert (images.dtype, labels.dtype) == (torch.float16, torch.int64)
    assert torch.equal(images, next(iter(loader(data, batch_size=4)))[0].half())


def test_without_shuffling_the_order_is_the_data_sets(data: ImageData) -> None:
    images, labels = next(iter(loader(data, batch_size=8)))
    assert torch.equal(images, torch.stack([data[i][0] for i in range(8)]))
    assert labels.tolist() == [data[i][1] for i in range(8)]


def test_a_subset_follows_the_seed_and_repeats_nothing(data: ImageData) -> None:
    def take(seed: int) -> torch.Tensor:
        return next(iter(loader(data, batch_size=64, limit=64, seed=seed)))[0]

    assert torch.equal(take(0), take(0))
    assert not torch.equal(take(0), take(1))
    assert len(torch.unique(take(0).flatten(1), dim=0)) == 64


def test_a_limit_beyond_the_data_takes_all(data: ImageData) -> None:
    assert sum(len(labels) for _, labels in loader(data, batch_size=512, limit=10**6)) == len(data) == 2048


def test_shuffling_follows_the_seed_and_changes_each_epoch(data: ImageData) -> None:
    def epochs(seed: int) -> list[list[int]]:
        batches = loader(data, batch_size=64, shuffle=True, limit=64, seed=seed)
        return [next(iter(batches))[1].tolist() for _ in range(2)]

    assert epochs(0) == epochs(0)
    assert epochs(0)[0] != epochs(0)[1]
    assert sorted(epochs(0)[0]) == sorted(epochs(0)[1])


def test_workers_change_nothing(data: ImageData) -> None:
    alone = [images for images, _ in loader(data, batch_size=16, limit=48)]
    helped = [images for images, _ in loader(data, batch_size=16, limit=48, workers=1)]
    assert all(torch.equal(a, b) for a, b in zip(alone, helped, strict=True))


def test_numbers_below_their_bound_are_reported_together(data: ImageData) -> None:
    with pytest.raises(
        DataError, match=r"batch_size 0 \(at least 1\), limit 0 \(at least 1\), workers -1 \(at least 0\)"
    ):
        loader(data, batch_size=0, limit=0, workers=-1)


def test_names_in_two_forms_of_unicode_are_one_class(data: ImageData) -> None:
    composed, apart = "caf\u00e9", "cafe\u0301"  # as people write it, and as a Mac writes folders
    order = ["tea", composed]
    assert mismatch([apart, "tea"], order, 2) is None
    assert mismatch(["cafe"], order, 2) == "the model has no class cafe"
    source = [(Image.new("L", (2, 2)), label) for label in range(2)]
    images = ImageData(source, Preprocess((1, 2, 2), (0.0,), (1.0,)).transform(), classes=[apart, "tea"])
    numbered = images.numbered(order)
    assert (numbered.classes, [label for _, label in numbered.source]) == (("tea", composed), [1, 0])
    with pytest.raises(ValueError, match="no class cafe among"):
        ImageData(source, images.transform, classes=["tea", "cafe"]).numbered(order)
