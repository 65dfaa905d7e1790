"""Calibration batches: no image lost or shared, whatever a batch is made of."""

from collections import UserDict
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, islice
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from hypercompress.errors import DataError
from hypercompress.running.batches import cut, join, to_device
from hypercompress.running.calibration import require_batches, split_batches

CPU = torch.device("cpu")


class Pair(NamedTuple):
    """A batch as some loaders give it."""

    image: Tensor
    label: Tensor


class Streamed(IterableDataset[Tensor]):
    """Batches that come from a stream."""

    def __iter__(self) -> Iterator[Tensor]:
        return iter([torch.zeros(3, 1)])


@pytest.mark.parametrize("count", [1, 2, 3, 4, 8, 9, 20])
def test_splits_share_no_image_and_lose_none(count: int) -> None:
    data = list(torch.arange(6 * count).float().reshape(count, 6, 1).unbind())
    split = split_batches(data, CPU)
    parts = [torch.cat(list(part)).flatten().tolist() for part in (split.statistics, split.select, split.confirm)]
    assert sorted(chain.from_iterable(parts)) == list(range(6 * count))
    assert all(parts)
    if count >= 3:
        assert len(parts[0]) >= len(parts[1]) >= len(parts[2])


@pytest.mark.parametrize(
    ("sizes", "held"),
    [
        ((512, 510, 2), (128, 128)),
        ((500, 500, 24), (128, 128)),
        ((400, 8, 8, 8, 8, 8, 8), (56, 56)),
        ((512, 512), (128, 128)),
        ((512,), (64, 64)),
        ((32, 32, 32), (16, 16)),
        ((16, 16), (5, 5)),
        ((1, 3, 1), (1, 1)),
        ((21, 41), (10, 11)),  # no piece of one sample is cut off
    ],
)
def test_few_or_uneven_batches_leave_most_samples_for_the_statistics(
    sizes: tuple[int, ...], held: tuple[int, int]
) -> None:
    """A loader's third batch may be its short last one, which alone would be measured on."""
    rows = torch.arange(sum(sizes)).view(-1, 1)
    split = split_batches([(part, -part[:, 0]) for part in rows.split(sizes)], CPU)
    parts = [[row for batch in part for row in batch[0][:, 0].tolist()] for part in (split.select, split.confirm)]
    parts.append([row for batch in split.statistics for row in batch[0][:, 0].tolist()])
    assert list(map(len, parts)) == [*held, sum(sizes) - sum(held)]
    assert list(chain.from_iterable(parts)) == list(range(sum(sizes)))
    for batch in (*split.select, *split.confirm, *split.statistics):
        assert torch.equal(-batch[0][:, 0], batch[1])


def test_batches_that_are_no_rows_of_samples_stay_whole() -> None:
    graphs = [{"nodes": torch.full((6, 2), float(i)), "edges": torch.full((9, 2), i)} for i in range(3)]
    split = split_batches(graphs, CPU)
    for i, part in enumerate((split.select, split.confirm, split.statistics)):
        (batch,) = part
        assert torch.equal(batch["nodes"], graphs[i]["nodes"])
        assert torch.equal(batch["edges"], graphs[i]["edges"])


def test_too_little_data_is_refused() -> None:
    with pytest.raises(DataError, match="without a single batch"):
        split_batches([], CPU)
    with pytest.raises(DataError, match="received 2 calibration samples; expected at least 3"):
        split_batches([torch.zeros(2, 1)], CPU)


def test_batches_without_a_sample_are_left_out() -> None:
    data = list(torch.arange(24.0).reshape(4, 6, 1).unbind())
    wanted, found = split_batches(data, CPU), split_batches([data[0][:0], data[0], data[1][:0], *data[1:]], CPU)
    for part in ("statistics", "select", "confirm"):
        assert all(map(torch.equal, getattr(wanted, part), getattr(found, part)))
    with pytest.raises(DataError, match="without a single batch"):
        split_batches([data[0][:0]], CPU)


def test_single_samples_are_not_taken_for_batches() -> None:
    images = torch.zeros(9, 1, 8, 8)
    with pytest.raises(DataError, match=r"received a Tensor as calibration data, whose items .* pass data.split\(32\)"):
        split_batches(images, CPU)
    with pytest.raises(DataError, match=r"received a TensorDataset .* pass torch.utils.data.DataLoader\(data, batch"):
        require_batches(TensorDataset(images))  # not `split_batches`: the tests' type checks would come first
    for data in (list(images), iter(images), DataLoader(TensorDataset(images), batch_size=2), Streamed()):
        require_batches(data)


def test_real_numbers_are_cast_and_others_are_not() -> None:
    batches = [{"x": torch.rand(2, 3), "ids": torch.arange(2), "mask": torch.ones(2).bool()} for _ in range(3)]
    for part in split_batches(batches, CPU, torch.float64).statistics:
        assert [value.dtype for value in part.values()] == [torch.float64, torch.int64, torch.bool]
    assert split_batches(batches, CPU).statistics[0]["x"].dtype is torch.float32


def test_named_tuples_stay_named() -> None:
    pair = Pair(torch.arange(6), torch.arange(6))
    assert to_device(pair, CPU)._fields == ("image", "label")
    assert isinstance(next(cut(pair, 3)), Pair)
    assert torch.equal(join([pair, pair], 20).label, torch.cat([pair.label, pair.label]))


class Features(UserDict[str, Tensor]):
    """A batch as Hugging Face gives it: a mapping that is no dict, whose values are attributes, too."""

    def __getattr__(self, name: str) -> Tensor:
        if name == "data":
            raise AttributeError(name)
        return self.data[name]


@pytest.mark.parametrize("kind", [Features, MappingProxyType])
def test_mappings_that_are_no_dict_are_split_joined_and_moved(kind: Any) -> None:
    split = split_batches([kind({"pixels": torch.arange(7)})], CPU)
    parts = [*split.select, *split.confirm, *split.statistics]
    assert [len(part["pixels"]) for part in parts] == [1, 1, 5]
    assert join(parts, 6)["pixels"].tolist() == list(range(6))
    assert to_device(parts[0], torch.device("meta"))["pixels"].is_meta
    if kind is Features:
        assert join(parts, 6).pixels.tolist() == list(range(6))


def test_a_batch_without_a_tensor_is_refused() -> None:
    with pytest.raises(DataError, match="received a calibration batch of type dict in which no tensor is found"):
        split_batches([{"x": torch.zeros(3)}, {"x": [1.0, 2.0]}], CPU)


def test_a_loader_that_refills_one_buffer_is_read_in_time() -> None:
    buffer = torch.zeros(2, 1)

    def refilled() -> Iterator[tuple[Tensor, Tensor]]:
        for number in range(6):
            yield buffer.fill_(number), torch.full((2,), number)

    split = split_batches(refilled(), CPU)
    for images, labels in (*split.statistics, *split.select, *split.confirm):
        assert torch.equal(images[:, 0], labels.float())


@pytest.mark.parametrize("kind", [list, tuple])
@pytest.mark.parametrize("labels", [torch.zeros(16).long(), torch.zeros(16, 10), torch.zeros(16, 3, 8, 8).long()])
def test_images_and_labels_are_not_two_batches(kind: Any, labels: Tensor) -> None:
    data = kind((torch.zeros(16, 3, 8, 8), labels))
    with pytest.raises(DataError, match=r"images and labels .* wrap it: data=\[\(images, labels\)\]"):
        split_batches(data, CPU)
    require_batches([data])
    require_batches(torch.zeros(10, 3).split(5))
    require_batches([data[0], data[0]])


def test_what_no_model_is_passed_does_not_keep_batches_apart() -> None:
    """File names differ from batch to batch."""
    batches = [(torch.randn(4, 3), torch.arange(4), [f"{i}_{j}.png" for j in range(4)]) for i in range(8)]
    soft = [(torch.randn(4, 3), torch.rand(2, 5) + i) for i in range(8)]
    for data, parts in ((batches, 2), (soft, 1)):
        split = split_batches(data, torch.device("cpu"), passed=True)
        whole = join(split.statistics, 100)
        assert (len(whole), len(whole[0])) == (parts, split.samples)
        assert len(join(split_batches(data, torch.device("cpu")).statistics, 100)[0]) == 4, "forward_fn may read them"


@pytest.mark.parametrize("sizes", [(32, 2), (32, 1), (2, 1), (1, 1, 1), (3,), (2, 2)])
def test_three_samples_are_enough_however_they_come(sizes: tuple[int, ...]) -> None:
    images = torch.arange(sum(sizes)).float().view(-1, 1, 1, 1)
    split = split_batches(list(images.split(sizes)), torch.device("cpu"))
    parts = [torch.cat(list(part)).flatten().tolist() for part in (split.statistics, split.select, split.confirm)]
    assert all(parts)
    assert sorted(chain.from_iterable(parts)) == list(range(sum(sizes)))


def of_classes(order: Tensor, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    """Images that say which they are and labels, four classes of as many."""
    labels = torch.arange(4).repeat_interleave(len(order) // 4)
    images = torch.arange(len(order)).float().view(-1, 1)
    return list(zip(images[order].split(size), labels[order].split(size), strict=True))


@pytest.mark.parametrize("passed", [False, True])
def test_folders_that_are_read_class_by_class_are_shuffled(passed: bool) -> None:
    split = split_batches(of_classes(torch.arange(64)), torch.device("cpu"), passed=passed)
    assert [len(part) for part in (split.statistics, split.select, split.confirm)] == [2, 1, 1]
    for part in (split.statistics, split.select, split.confirm):
        images, labels = (torch.cat([batch[i] for batch in part]) for i in (0, 1))
        assert torch.equal(images.flatten().long() // 16, labels), "labels stay with their images"
        assert set(labels.tolist()) == {0, 1, 2, 3}
    every = torch.cat([batch[0] for part in (split.statistics, split.select, split.confirm) for batch in part])
    assert sorted(every.flatten().tolist()) == list(range(64))


def test_what_is_shuffled_or_has_no_classes_stays_in_order() -> None:
    shuffled = of_classes(torch.randperm(64, generator=torch.Generator().manual_seed(0)))
    alike = [(images, torch.zeros(16, dtype=torch.int64)) for images, _ in of_classes(torch.arange(64))]
    numbers = [(images, labels.float()) for images, labels in of_classes(torch.arange(64))]
    for batches in (shuffled, alike, numbers, [images for images, _ in shuffled]):
        split = split_batches(batches, torch.device("cpu"))
        first = split.select[0][0] if isinstance(split.select[0], tuple) else split.select[0]
        expected = batches[0][0] if isinstance(batches[0], tuple) else batches[0]
        assert torch.equal(first, expected)


class Endless:
    """Batches of ten without an end; how many were asked for is counted."""

    def __init__(self, label: Callable[[int], int] | None = None) -> None:
        self.label, self.asked = label, 0

    def __iter__(self) -> Iterator[Any]:
        while True:
            rows = torch.arange(10 * self.asked, 10 * self.asked + 10)
            self.asked += 1
            images = rows[:, None].float()
            yield images if self.label is None else (images, torch.tensor([self.label(int(row)) for row in rows]))


def rows_in(batches: Iterable[Any]) -> list[int]:
    split = split_batches(batches, CPU, images=35)
    parts = [*split.select, *split.confirm, *split.statistics]
    return sorted(int(row) for part in parts for row in (part[0] if isinstance(part, tuple) else part).flatten())


def test_of_a_loader_so_many_samples_are_read() -> None:
    assert rows_in(loader := Endless()) == list(range(35))
    assert loader.asked == 4
    assert rows_in(list(islice(iter(Endless()), 5))) == list(range(50)), "what is in memory is read whole"
    assert rows_in(batch for batch in torch.arange(20.0).split(10)) == list(range(20))
    assert rows_in(Endless(lambda row: row % 3)) == list(range(35))


@pytest.mark.parametrize("most", [30, 35])
def test_the_first_samples_in_the_order_of_their_labels_are_refused(most: int) -> None:
    with pytest.raises(
        DataError, match=rf"the first {most} samples have labels in their order, from 0 to 1; .*shuffle"
    ):
        split_batches(Endless(lambda row: row // 20), CPU, images=most, passed=True)
    with pytest.warns(UserWarning, match=rf"the first {most} samples have labels 4 alone; .* images=None to read all"):
        split_batches(Endless(lambda _: 4), CPU, images=most, passed=True)
    for images, count in ((None, 50), (50, 50)):  # nothing is left, and they are shuffled
        whole = iter(list(islice(iter(Endless(lambda row: row // 20)), 5)))
        assert sum(map(len, [part[0] for part in split_batches(whole, CPU, images=images).statistics])) == count - 20


def test_what_may_be_no_labels_or_in_order_by_chance_is_not_refused() -> None:
    for some, passed in ((lambda row: row // 4, True), (lambda row: row, True), (lambda _: 4, False)):
        split_batches(Endless(some), CPU, images=8, passed=passed)  # lengths that are alike are ordinary
    with pytest.warns(UserWarning, match="the first 30 samples have labels in their order"):
        split_batches(Endless(lambda row: row // 20), CPU, images=30)  # such as lengths that a forward_fn reads
