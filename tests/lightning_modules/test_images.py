"""The order of images and what is done to them: by seed, epoch and place, kept in memory or not."""

import numpy as np
import pytest
import torch

from lightning_modules import images as module
from lightning_modules.images import CachedImages, PreparedImages, flipped, shifted
from lightning_modules.loading import ResumableLoader
from tests.lightning_modules.digits import epoch, opened


def test_order_and_augmentation_follow_from_seed_and_epoch() -> None:
    images = opened(batch_size=100, augment="shift")
    first = epoch(images, 0)
    torch.manual_seed(99)
    assert torch.equal(first, epoch(images, 0))
    assert not torch.equal(first, epoch(images, 1))
    plain = epoch(opened(batch_size=100), 0)
    assert not torch.equal(first, plain)


@pytest.mark.parametrize("augment", ["shift", "none"])
def test_a_loader_goes_on_where_it_was(augment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if augment == "none":  # the form for sets that do not fit into memory
        monkeypatch.setattr(module, "CACHE_BYTES", 0)
    images = opened(batch_size=32, limit=160, augment=augment)
    whole = images.train_dataloader()
    assert isinstance(whole, ResumableLoader)
    batches, states = [], []
    for batch, _ in whole:
        batches.append(batch)
        states.append(whole.state_dict())
    assert len(batches) == 5
    for place, state in enumerate(states):
        rest = images.train_dataloader()
        assert isinstance(rest, ResumableLoader)
        rest.load_state_dict(state)
        got = [batch for batch, _ in rest]
        expected = batches[place + 1 :] or batches  # after a whole epoch comes a whole epoch
        assert torch.equal(torch.cat(got), torch.cat(expected))
        assert len([batch for batch, _ in rest]) == 5  # skipped once


@pytest.mark.parametrize(("limit", "used"), [(3, 3), (0.5, 2), (9, 5), (1.0, 5)])
def test_an_epoch_that_the_trainer_cuts_short_is_whole(limit: float, used: int) -> None:
    loader = opened(batch_size=32, limit=160).train_dataloader()
    assert isinstance(loader, ResumableLoader)
    loader.most = limit
    for done, skip in ((used, 0), (used - 1, used - 1)):
        loader.load_state_dict({"done": done})
        assert loader.skip == skip


def test_crops_follow_from_image_and_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    images = opened(augment="crop", batch_size=16, limit=48)
    first = epoch(images, 0)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert torch.equal(first, epoch(images, 0))
    assert torch.equal(torch.get_rng_state(), state)
    data = images.train_dataloader().dataset
    assert isinstance(data, PreparedImages)
    one, same, later = (data[place][0] for place in (5, 5, 5 + 48))
    assert torch.equal(one, same)
    assert not torch.equal(one, later)  # the same image, an epoch later


def test_flips_mirror_about_half_of_the_images_and_change_nothing_else() -> None:
    images = torch.rand(400, 1, 4, 5)
    out = flipped(images, torch.Generator().manual_seed(0))
    kept, mirrored = ((out == other).flatten(1).all(1) for other in (images, images.flip(-1)))
    assert bool((kept ^ mirrored).all())
    assert 140 < int(mirrored.sum()) < 260


def test_shifts_move_each_image_on_its_own_and_repeat_the_edge() -> None:
    images = torch.rand(200, 2, 6, 6)
    out = shifted(images, 1, torch.Generator().manual_seed(0))
    seen = set()
    for before, after in zip(images, out, strict=True):
        padded = torch.from_numpy(np.pad(before.numpy(), ((0, 0), (1, 1), (1, 1)), mode="edge"))
        places = [(y, x) for y in range(3) for x in range(3) if torch.equal(padded[:, y : y + 6, x : x + 6], after)]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) == 9


def test_augmentation_is_for_training_alone_and_leaves_the_kept_images_as_they_are() -> None:
    images = opened(augment="shift", batch_size=64)
    kept = images.train_dataloader().dataset
    assert isinstance(kept, CachedImages)
    before = kept.images.clone()
    indices = list(range(64))
    assert not torch.equal(kept.__getitems__(indices)[0], before[:64])
    assert torch.equal(kept.images, before)
    held_out = images.val_dataloader().dataset
    assert isinstance(held_out, CachedImages)
    assert torch.equal(held_out.__getitems__(indices)[0], held_out.images[:64])


def test_a_batch_of_one_image_is_not_flipped_in_every_epoch_alike() -> None:
    images = opened(augment="flip", batch_size=1, limit=2)
    data = images.train_dataloader().dataset
    epochs = [data.__getitems__([2 * epoch])[0] for epoch in range(16)]
    flips = {not torch.equal(image, epochs[0]) for image in epochs}
    assert flips == {False, True}


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("augment", ["flip", "shift"])
def test_a_set_too_large_for_memory_gives_the_same_augmented_batches(
    augment: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = opened(augment=augment, batch_size=32, limit=96)
    monkeypatch.setattr(module, "CACHE_BYTES", 1000)
    large = opened(augment=augment, batch_size=32, limit=96, workers=workers)
    assert isinstance(large.train_dataloader().dataset, PreparedImages)
    for number in (0, 1):
        assert torch.equal(epoch(cached, number), epoch(large, number))
    for ours, theirs in zip(cached.train_dataloader(), large.train_dataloader(), strict=True):
        assert torch.equal(ours[1], theirs[1])
    before, after = (data.val_dataloader() for data in (cached, large))
    assert torch.equal(next(iter(before))[0], next(iter(after))[0])
