"""The order in which training images come, and a loader that goes on in the middle of it.

The order follows from the seed and the epoch, flips and shifts of a batch from its images and the epoch, and the crop
of an image from its place and the epoch; the random states that a step starts from (dropout, stochastic depth) are in
the checkpoint. So a run that goes on from a checkpoint in the middle of an epoch is what the whole run would have been.
"""

import signal
from collections.abc import Iterator
from itertools import chain, count
from typing import Any

from torch.utils.data import DataLoader, Dataset
from torch.utils.data.distributed import DistributedSampler

from lightning_modules.randomness import random_states, set_random_states


class Order(DistributedSampler[Any]):
    """A rank's shuffled places in a set of ``n`` images, those of epoch ``e`` counted from ``e n``.

    So the set, in whatever process, knows the epoch of what it fetches (`lightning_modules.images`).
    """

    def __iter__(self) -> Iterator[int]:
        images = len(self.dataset)  # type: ignore[arg-type]  # torch's Dataset promises no length
        return (self.epoch * images + place for place in super().__iter__())


class Share(DistributedSampler[Any]):
    """A rank's places in a set, in order, each of them on one rank: torch's own repeats some where the ranks do not
    divide the set, and a mean over the ranks counts those twice.

    A rank without images would keep the others waiting, so of fewer images than ranks each has all, which leaves a mean
    what it is.
    """

    def __init__(self, data: Dataset[Any], ranks: int, rank: int) -> None:
        super().__init__(data, ranks, rank, shuffle=False)
        images = len(data)  # type: ignore[arg-type]  # torch's Dataset promises no length
        self.least = images // ranks or images  # on any rank
        self.places = range(rank, images, ranks) if images >= ranks else range(images)

    def __iter__(self) -> Iterator[int]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def batch_size(self, most: int) -> int:
        """Images in a batch so that all ranks have as many batches, as DDP asks: about ``most``.

        Where some have an image more than others, that one must not be a batch of its own.
        """
        uneven = len(self.dataset) > self.least * self.num_replicas  # type: ignore[arg-type]
        sizes = chain(range(most, 1, -1), count(most + 1))
        return next(size for size in sizes if self.least % size) if uneven else most


class ResumableLoader(DataLoader[Any]):
    """A loader that goes on in the middle of an epoch; Lightning keeps its state in the checkpoint.

    With it go the random states as they were after the last step, because nothing that runs from there to the next
    step draws from them: they are set right before the first batch after the checkpoint.
    """

    done = 0  # batches of this epoch that were handed out
    skip = 0  # of them before the checkpoint
    most: int | float = 1.0  # batches that an epoch uses, as trainer.limit_train_batches says it: a float is a share
    random: dict[str, Any] | None = None  # states to go on from

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator is all that a loop needs
        skip, self.skip = self.skip, 0
        for self.done, batch in enumerate(super().__iter__(), 1):
            if self.done > skip:
                if self.random is not None:
                    set_random_states(self.random)
                    self.random = None
                yield batch

    def state_dict(self) -> dict[str, Any]:
        """How far this epoch is."""
        return {"done": self.done, "random": random_states()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; a whole epoch leaves nothing to skip in the next."""
        whole = int(self.most * len(self)) if isinstance(self.most, float) else min(self.most, len(self))
        self.done = self.skip = state["done"] % max(1, whole)
        self.random = state.get("random")


def batch_(batch: Any) -> Any:
    """The set has made the batch already."""
    return batch


def ignore_signals(worker: int) -> None:  # noqa: ARG001  (torch's)
    """A scheduler, or Ctrl-C, signals all processes of a group; a worker that ended would take the last step's
    checkpoint along.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
