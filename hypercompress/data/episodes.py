"""Few-shot episodes: small classification tasks drawn from labelled images.

An episode has a support set to adapt to and a query set to be judged on (Vinyals et al. 2016, arXiv 1606.04080,
section 4.1): ``ways`` classes drawn at random, of each ``shots`` images to learn from and ``queries`` others. Ways and
shots may differ from one episode to the next (Triantafillou et al. 2020, arXiv 1903.03096, section 3.2).

Shape letters: ``n`` images; ``s`` support images; ``q`` query images; ``c h w`` channels, height and width.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hypercompress.data.images import ImageData, loader
from hypercompress.errors import DataError

BATCH = 256  # images that are prepared at once


@dataclass(frozen=True)
class Pool:
    """Labelled images in memory, from which episodes are drawn.

    Args:
        name: of the data set, for messages and tables.
        images: as the backbone wants them.
        labels: any integers; each different one is a class.

    Raises:
        DataError: not one label for each image, an image without a label, or no image.
    """

    name: str
    images: Float[Tensor, "n c h w"]
    labels: Int[Tensor, " m"]  # m is n; another number gets an error that says so

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.images) or not len(self.labels):
            raise DataError(
                f"received {len(self.labels)} labels for {len(self.images)} images of {self.name}; expected one label "
                "for each of at least one image; pass both of the same set"
            )
        if int(self.labels.min()) < 0:
            raise DataError(
                f"received images of {self.name} without a label; expected a label from 0 for each; put the images "
                "of a class into a sub-folder of their own"
            )

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def places(self) -> dict[int, Tensor]:
        """Where the images of each class stand; classes in rising order."""
        return {int(label): (self.labels == label).nonzero().flatten() for label in self.labels.unique()}

    @property
    def classes(self) -> tuple[int, ...]:
        """The labels that occur, rising."""
        return tuple(self.places)

    def only(self, classes: Sequence[int]) -> "Pool":
        """The images of these classes, in the pool's order; labels stay as they are."""
        return self._take(torch.isin(self.labels, self.labels.new_tensor(list(classes))))

    def at_least(self, images: int) -> "Pool":
        """The classes of at least so many images, for episodes of a size that some classes cannot fill.

        Raises:
            DataError: no class has so many.
        """
        kept = [label for label, found in self.places.items() if len(found) >= images]
        if not kept:
            raise DataError(
                f"received {self.name}, whose classes have {_counts(self)} images; expected one with at least "
                f"{images}; ask for fewer"
            )
        return self.only(kept)

    def _take(self, chosen: Tensor) -> "Pool":
        return Pool(self.name, self.images[chosen], self.labels[chosen])


@dataclass(frozen=True)
class Places:
    """An episode as places in its pool, so that what is computed once for an image serves all episodes.

    Args:
        classes: the pool's labels by way; way 0 is the first.
        support, query: places in the pool, class after class.
        shots: support images of each class.
    """

    classes: tuple[int, ...]
    support: Int[Tensor, " s"]
    query: Int[Tensor, " q"]
    shots: int

    @property
    def support_labels(self) -> Int[Tensor, " s"]:
        """Ways of the support images."""
        return torch.arange(len(self.classes)).repeat_interleave(self.shots)

    @property
    def query_labels(self) -> Int[Tensor, " q"]:
        """Ways of the query images."""
        return torch.arange(len(self.classes)).repeat_interleave(len(self.query) // len(self.classes))


@dataclass(frozen=True)
class Episode:
    """One task. Labels are ways: 0 .. ways - 1.

    Args:
        support, support_labels: to adapt to.
        query, query_labels: to be judged on; none of the support images.
        classes: the pool's label of each way.
    """

    support: Float[Tensor, "s c h w"]
    support_labels: Int[Tensor, " s"]
    query: Float[Tensor, "q c h w"]
    query_labels: Int[Tensor, " q"]
    classes: tuple[int, ...]

    def to(self, device: torch.device) -> "Episode":
        """The same episode on a device."""
        support, query = self.support.to(device), self.query.to(device)
        return Episode(support, self.support_labels.to(device), query, self.query_labels.to(device), self.classes)


def draw_places(pool: Pool, ways: int, shots: int, queries: int, generator: torch.Generator) -> Places:
    """Draw classes, and of each ``shots`` support and ``queries`` query images, none of them twice.

    Args:
        ways: classes, at least 2.
        shots, queries: images of each class, at least 1.
        generator: the only source of chance.

    Raises:
        DataError: a number below its bound, fewer classes than ``ways``, or a class with too few images (see
            `Pool.at_least`), drawn or not.
    """
    _check(pool, ways, shots, queries)
    order = torch.randperm(len(pool.classes), generator=generator)[:ways].tolist()
    classes = tuple(pool.classes[place] for place in order)
    drawn = []
    for label in classes:
        found = pool.places[label]
        drawn.append(found[torch.randperm(len(found), generator=generator)[: shots + queries]])
    both = torch.stack(drawn)
    return Places(classes, both[:, :shots].flatten(), both[:, shots:].flatten(), shots)


def episode_at(pool: Pool, places: Places) -> Episode:
    """The images at these places."""
    support, query = pool.images[places.support], pool.images[places.query]
    return Episode(support, places.support_labels, query, places.query_labels, places.classes)


def sample_episode(pool: Pool, ways: int, shots: int, queries: int, generator: torch.Generator) -> Episode:
    """`draw_places`, and the images there: the same generator state gives the same episode."""
    return episode_at(pool, draw_places(pool, ways, shots, queries, generator))


def draw_sizes(
    pool: Pool, ways: tuple[int, int], shots: tuple[int, int], queries: int, generator: torch.Generator
) -> tuple[int, int]:
    """Ways and shots of an episode that the pool can fill.

    Args:
        ways: the least and the most; drawn uniformly, from what the pool has.
        shots: the least and the most; their logarithm is drawn uniformly, so that few shots are as frequent as many.
            The smallest class bounds them.
        queries: images of each class that must remain.

    Raises:
        DataError: bounds in the wrong order, or the pool cannot fill the least.
    """
    if not 2 <= ways[0] <= ways[1] or not 1 <= shots[0] <= shots[1]:
        raise DataError(
            f"received ways {ways} and shots {shots}; expected the least and the most, with ways from 2 and shots from "
            "1; put the smaller number first"
        )
    _check(pool, ways[0], shots[0], queries)
    most = min(shots[1], min(len(found) for found in pool.places.values()) - queries)
    chance = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    highest = min(ways[1], len(pool.classes))
    drawn = ways[0] + int(chance[0] * (highest - ways[0] + 1))
    return drawn, min(most, int(math.exp(math.log(shots[0]) + chance[1] * math.log((most + 1) / shots[0]))))


def split_classes(pool: Pool, share: float, seed: int) -> tuple[Pool, Pool]:
    """Two pools without a common class: the first has ``share`` of the classes, rounded, each at least two.

    Args:
        share: in (0, 1).
        seed: of the draw; the same seed gives the same classes on every machine.

    Raises:
        DataError: a share outside its range, or fewer than four classes.
    """
    count = len(pool.classes)
    if not 0.0 < share < 1.0 or count < 4:
        raise DataError(
            f"received a share of {share:g} of the {count} classes of {pool.name}; expected a share between 0 and 1 of "
            "at least 4 classes, so that both parts have two; choose another share or set"
        )
    first = min(max(2, round(share * count)), count - 2)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).tolist()
    shuffled = [pool.classes[place] for place in order]
    return pool.only(shuffled[:first]), pool.only(shuffled[first:])


def read_pool(name: str, data: ImageData, limit: int | None = None, seed: int = 0) -> Pool:
    """A data set prepared once and kept in memory; meta-training opens it with ``train=True`` only.

    Args:
        name: for messages and tables.
        data: labelled images, as `open_data` gives them.
        limit: a random subset of so many images.
        seed: of the subset.

    Raises:
        DataError: images without labels.
    """
    parts = list(loader(data, batch_size=BATCH, limit=limit, seed=seed))
    return Pool(name, torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts]))


def _check(pool: Pool, ways: int, shots: int, queries: int) -> None:
    bounds = {"ways": (ways, 2), "shots": (shots, 1), "queries": (queries, 1)}
    low = [f"{name} {value} (at least {least})" for name, (value, least) in bounds.items() if value < least]
    if low:
        raise DataError(f"received {', '.join(low)}; expected numbers from the bound in brackets; raise them")
    if len(pool.classes) < ways:
        raise DataError(
            f"received {ways} ways for {pool.name} of {len(pool.classes)} classes; expected at most as many ways as "
            "classes; ask for fewer ways"
        )
    small = {label: len(found) for label, found in pool.places.items() if len(found) < shots + queries}
    if small:
        named = ", ".join(f"{label} ({count})" for label, count in list(small.items())[:5])
        raise DataError(
            f"received {shots} shots and {queries} queries for {pool.name}, where {len(small)} classes have fewer "
            f"images, such as {named}; expected {shots + queries} in each; ask for fewer, or leave the small classes "
            f"out with pool.at_least({shots + queries})"
        )


def _counts(pool: Pool) -> str:
    counts = [len(found) for found in pool.places.values()]
    return f"{min(counts)} to {max(counts)}"
