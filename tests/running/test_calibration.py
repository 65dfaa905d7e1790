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
from hypercompress.running.batches import cut, join, pieces, resized, to_device
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


def test_batches_are_cut_whatever_they_are() -> None:
    batch = {"x": torch.arange(7), "y": (torch.arange(7), "text")}
    parts = list(cut(batch, 3))
    assert torch.equal(torch.cat([part["x"] for part in parts]), batch["x"])
    assert [part["y"][1] for part in parts] == ["text"] * 3
    assert all(torch.equal(part["x"], part["y"][0]) for part in parts)


def test_named_tuples_stay_named() -> None:
    pair = Pair(torch.arange(6), torch.arange(6))
    assert to_device(pair, CPU)._fields == ("image", "label")
    assert isinstance(next(cut(pair, 3)), Pair)
    assert torch.equal(join([pair, pair], 20).label, torch.cat([pair.label, pair.label]))


@pytest.mark.parametrize(
    ("most", "sizes"), [(9, [5, 8]), (8, [5, 8]), (5, [5, 4, 4]), (3, [3, 2, 3, 3, 2]), (1, 13 * [1])]
)
def test_pieces_are_even_and_keep_every_sample_in_order(most: int, sizes: list[int]) -> None:
    data = torch.arange(13.0)[:, None]
    found = list(pieces([Pair(data[:5], data[:5] + 1), Pair(data[5:], data[5:] + 1)], most))
    assert [len(pair.image) for pair in found] == sizes
    assert all(isinstance(pair, Pair) and torch.equal(pair.label, pair.image + 1) for pair in found)
    torch.testing.assert_close(torch.cat([pair.image for pair in found]), data)


def test_what_cannot_be_cut_stays_whole() -> None:
    """Packed sequences: as many rows as there are words, and a length for each sample."""
    packed = {"words": torch.zeros(12), "lengths": torch.tensor([5, 4, 3]), "scale": torch.tensor(2.0)}
    (found,) = pieces([packed], 2)
    assert found is packed
    assert len(list(pieces([{**packed, "words": torch.zeros(3)}], 2))) == 2


@pytest.mark.parametrize("most", [1, 4, 7, 100])
def test_join_takes_the_first_samples_in_order(most: int) -> None:
    batches = [{"x": x, "y": (x * 2, "text", torch.tensor(3))} for x in torch.arange(10.0).split(4)]
    joined = join(batches, most)
    assert torch.equal(joined["x"], torch.arange(10.0)[:most])
    assert torch.equal(joined["y"][0], joined["x"] * 2)
    assert joined["y"][1:] == ("text", torch.tensor(3))


def test_join_leaves_out_batches_of_another_shape() -> None:
    assert join([torch.zeros(2, 3), torch.ones(2, 4), torch.zeros(1, 3)], 10).shape == (3, 3)


def test_join_takes_the_shape_of_most_samples_wherever_it_comes_first() -> None:
    odd, usual = torch.ones(3, 4), torch.zeros(2, 3)
    assert join([odd, usual, usual], 10).shape == (4, 3)
    assert join([usual, odd], 10).shape == (3, 4)
    assert join([usual, torch.ones(2, 4)], 10).shape == (2, 3)


def test_batches_of_any_form_are_brought_to_a_size() -> None:
    class Pair(NamedTuple):
        x: torch.Tensor
        name: str

    x = torch.arange(3)
    assert resized(x, 5).tolist() == [0, 1, 2, 0, 1]
    assert resized(Pair(x, "name"), 2).x.tolist() == [0, 1]
    assert resized({"a": [x, None, torch.tensor(7)]}, 1)["a"][0].tolist() == [0]
    assert resized([x, torch.tensor(7)], 2)[1].item() == 7


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
    assert [len(part["pixels"]) for part in parts] == [3, 2, 2]
    assert join(parts, 6)["pixels"].tolist() == list(range(6))
    assert to_device(parts[0], torch.device("meta"))["pixels"].is_meta
    if kind is Features:
        assert join(parts, 6).pixels.tolist() == list(range(6))


def test_a_batch_without_a_tensor_is_refused() -> None:
    with pytest.raises(DataError, match="received a calibration batch of type dict in which no tensor is found"):
        split_batches([{"x": torch.zeros(3)}, {"x": [1.0, 2.0]}], CPU)


def shared(rows: int, *, scale: float = 1.0, seed: int = 0) -> dict[str, Tensor]:
    """A batch with a table and a mask that belong to all of its samples."""
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))
    return {"x": x, "table": torch.arange(100.0).reshape(50, 2) * scale, "y": x.sum(1), "mask": torch.ones(2, 2).tril()}


def test_what_belongs_to_all_samples_stays_whole() -> None:
    batch = shared(16)
    several = [shared(16), shared(9, seed=1)]
    for made, x in (
        (list(cut(batch, 3))[1], batch["x"][6:11]),
        (resized(batch, 5), batch["x"][:5]),
        (resized(batch, 20), torch.cat([batch["x"], batch["x"][:4]])),
        (join(several, 99), torch.cat([several[0]["x"], several[1]["x"]])),
        (join(several, 18), torch.cat([several[0]["x"], several[1]["x"][:2]])),
        (join(several, 10), several[0]["x"][:10]),
        (split_batches([batch], CPU).statistics[0], batch["x"][11:]),
    ):
        assert torch.equal(made["x"], x)
        assert torch.equal(made["y"], x.sum(1))
        assert torch.equal(made["table"], batch["table"])
        assert torch.equal(made["mask"], batch["mask"])


def test_batches_that_differ_in_what_belongs_to_all_are_not_joined() -> None:
    one, other = shared(4), shared(5, scale=2.0, seed=1)
    assert torch.equal(join([one, other, shared(3, seed=2)], 99)["x"], torch.cat([one["x"], shared(3, seed=2)["x"]]))
    sparse = [{**batch, "table": batch["table"].bfloat16().to_sparse()} for batch in (one, shared(3, seed=2), other)]
    assert len(join(sparse, 99)["x"]) == 7
    assert join([{"x": torch.zeros(2), "t": torch.tensor(t)} for t in (1, 2, 2)], 99)["x"].shape == (4,)


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
