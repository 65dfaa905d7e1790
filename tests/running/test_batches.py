"""Batches cut, joined and brought to a size, whatever they are made of."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from hypercompress.running.batches import cut, join, pieces, resized
from hypercompress.running.calibration import split_batches

CPU = torch.device("cpu")


class Pair(NamedTuple):
    """A batch as some loaders give it."""

    image: Tensor
    label: Tensor


def test_batches_are_cut_whatever_they_are() -> None:
    batch = {"x": torch.arange(7), "y": (torch.arange(7), "text")}
    parts = list(cut(batch, 3))
    assert torch.equal(torch.cat([part["x"] for part in parts]), batch["x"])
    assert [part["y"][1] for part in parts] == ["text"] * 3
    assert all(torch.equal(part["x"], part["y"][0]) for part in parts)


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


def shared(rows: int, *, scale: float = 1.0, seed: int = 0) -> dict[str, Tensor]:
    """A batch with a table and a mask that belong to all of its samples."""
    x = torch.randn(rows, 3, generator=torch.Generator().manual_seed(seed))
    return {"x": x, "table": torch.arange(100.0).reshape(50, 2) * scale, "y": x.sum(1), "mask": torch.ones(2, 2).tril()}


def test_batches_that_differ_in_what_belongs_to_all_are_not_joined() -> None:
    one, other = shared(4), shared(5, scale=2.0, seed=1)
    assert torch.equal(join([one, other, shared(3, seed=2)], 99)["x"], torch.cat([one["x"], shared(3, seed=2)["x"]]))
    sparse = [{**batch, "table": batch["table"].bfloat16().to_sparse()} for batch in (one, shared(3, seed=2), other)]
    assert len(join(sparse, 99)["x"]) == 7
    assert join([{"x": torch.zeros(2), "t": torch.tensor(t)} for t in (1, 2, 2)], 99)["x"].shape == (4,)


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
        (split_batches([batch], CPU).statistics[0], batch["x"][4:]),
    ):
        assert torch.equal(made["x"], x)
        assert torch.equal(made["y"], x.sum(1))
        assert torch.equal(made["table"], batch["table"])
        assert torch.equal(made["mask"], batch["mask"])
