"""Which images of a validation each process has."""

from types import SimpleNamespace

import pytest
import torch

from lightning_modules.data import ImageDataModule
from lightning_modules.held_out import held_out
from lightning_modules.images import CachedImages
from lightning_modules.loading import Share
from tests.lightning_modules.digits import opened


def shares(images: int, ranks: int, batch: int) -> list[list[list[int]]]:
    """The batches of each rank."""
    data = CachedImages(torch.zeros(images, 1, 1, 1), torch.zeros(images, dtype=torch.int64))
    found = []
    for rank in range(ranks):
        share = Share(data, ranks, rank)
        places, size = list(share), share.batch_size(batch)
        assert len(share) == len(places)
        found.append([places[start : start + size] for start in range(0, len(places), size)])
    return found


@pytest.mark.parametrize("batch", [1, 2, 3, 16])
@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_each_image_is_on_one_rank_and_all_have_as_many_batches(ranks: int, batch: int) -> None:
    """DDP sends the buffers around in each: a rank with one more would wait for ever."""
    for images in range(ranks, 70):
        found = shares(images, ranks, batch)
        assert sorted(place for rank in found for part in rank for place in part) == list(range(images))
        assert len({len(rank) for rank in found}) == 1
        assert max(len(part) for rank in found for part in rank) <= max(batch, 7)


def test_of_fewer_images_than_ranks_each_has_all() -> None:
    assert shares(2, 3, 16) == [[[0, 1]]] * 3
    assert shares(1, 2, 1) == [[[0]]] * 2


def test_batches_are_as_large_as_asked_where_nothing_is_left_over() -> None:
    assert [len(part) for part in shares(64, 2, 16)[1]] == [16, 16]
    assert [len(part) for part in shares(65, 2, 16)[0]] == [15, 15, 3]
    assert [len(part) for part in shares(65, 2, 16)[1]] == [15, 15, 2]


@pytest.mark.parametrize("part", ["val", "test"])
def test_the_loaders_are_of_shares_and_what_is_measured_at_the_end_is_one_of_batches(part: str) -> None:
    images = opened(val_limit=33, batch_size=16)
    images.setup("test")
    whole = torch.cat([batch for batch, _ in images.held_out()])
    seen, one, strategy = [], [[0, 2], [1]], SimpleNamespace(root_device=torch.device("cpu"))
    for rank in range(2):
        run = SimpleNamespace(world_size=2, global_rank=rank, limit_val_batches=1.0, datamodule=images)
        run.strategy, images.trainer = strategy, run  # type: ignore[assignment]
        system = SimpleNamespace(trainer=run, _trainer=run, device="cpu")
        batches = [batch for batch, _ in held_out(system)]  # type: ignore[arg-type]
        assert all(torch.equal(batch, whole.split(16)[i]) for batch, i in zip(batches, one[rank], strict=True))
        run.limit_val_batches = 2
        assert [len(batch) for batch, _ in held_out(system)] == [16]  # type: ignore[arg-type]
        loader = ImageDataModule.val_dataloader if part == "val" else ImageDataModule.test_dataloader
        seen.append(torch.cat([batch for batch, _ in loader(images)]))
    assert torch.equal(seen[0], whole[::2])
    assert torch.equal(seen[1], whole[1::2])


def test_batches_are_pinned_where_a_gpu_will_fetch_them() -> None:
    images = opened(batch_size=16)
    loaders = ("train_dataloader", "val_dataloader", "held_out")
    assert not any(getattr(images, name)().pin_memory for name in loaders)
    for device in ("cpu", "cuda"):
        strategy = SimpleNamespace(root_device=torch.device(device))
        images.trainer = SimpleNamespace(world_size=1, global_rank=0, limit_train_batches=1.0, strategy=strategy)  # type: ignore[assignment]
        assert all(getattr(images, name)().pin_memory == (device == "cuda") for name in loaders)
