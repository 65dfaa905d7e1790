"""A backbone on a data set: episodes, frozen features and closed-form heads, which all methods share."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.few_shot.backbones import Backbone, frozen_features
from benchmarks.few_shot.clock import now
from benchmarks.few_shot.frozen import answer, pixels
from benchmarks.few_shot.passes import counting, last_layer
from benchmarks.few_shot.tuning import Outcome, accuracy
from hypercompress.data.episodes import Episode, Places, Pool, draw_places, episode_at

WAYS, QUERIES = 5, 10


@dataclass(frozen=True)
class Trial:
    """A backbone on a data set: what all methods share.

    Args:
        backbone: the network.
        data: name of the data set.
        pool: its images; every class can fill an episode of the most shots, so that all shots have the same classes.
        last: see `counting`.
    """

    backbone: Backbone
    data: str
    pool: Pool
    last: str
    _features: list[Tensor] = field(default_factory=list, repr=False)
    _ridge: dict[tuple[int, int], float] = field(default_factory=dict, repr=False)

    @property
    def ways(self) -> int:
        """Classes of an episode."""
        return min(WAYS, len(self.pool.classes))

    @property
    def features(self) -> Tensor:
        """Features of the whole pool [n, d] under the frozen backbone, computed once: all episodes share them. On the
        CPU, where a head of a few images is solved faster than on a card.
        """
        if not self._features:
            self._features.append(frozen_features(self.backbone.model, self.pool.images).cpu())
        return self._features[0]

    def places(self, shots: int, index: int) -> Places:
        """Episode number ``index``, the same for every method and backbone."""
        generator = torch.Generator().manual_seed(1_000_003 * shots + index)
        return draw_places(self.pool, self.ways, shots, QUERIES, generator)

    def episode(self, shots: int, index: int) -> Episode:
        """Its images, on the backbone's device."""
        return episode_at(self.pool, self.places(shots, index)).to(self.backbone.device)

    def frozen(self, method: str, places: Places) -> float:
        """Accuracy of a closed-form head, from the features that are known."""
        support, query = (self._read(method, part) for part in (places.support, places.query))
        logits = answer(method, support, places.support_labels, query, len(places.classes))
        return accuracy(logits, places.query_labels)

    def _read(self, method: str, places: Tensor) -> Tensor:
        """What the head of a method reads of images."""
        return pixels(self.pool.images[places]) if method == "pixels" else self.features[places]

    def ridge(self, shots: int, numbers: Iterable[int]) -> list[float]:
        """Accuracy of ridge regression on these episodes, which all methods are compared with."""
        for index in numbers:
            if (shots, index) not in self._ridge:
                self._ridge[shots, index] = self.frozen("ridge", self.places(shots, index))
        return [self._ridge[shots, index] for index in numbers]

    def measured(self, method: str, places: Places) -> Outcome:
        """The same with nothing known beforehand: what it costs."""
        episode, query, device = episode_at(self.pool, places), self.features[places.query], self.backbone.device
        start = now(device)
        if method == "pixels":
            right = self.frozen(method, places)
            return Outcome(right, 0.0, 0.0, now(device) - start)
        with counting(self.backbone.model, self.last) as passes:
            support = frozen_features(self.backbone.model, episode.support).cpu()
            right = accuracy(
                answer(method, support, episode.support_labels, query, len(episode.classes)), episode.query_labels
            )
        images = len(support)
        return Outcome(right, passes.forward / images, passes.backward / images, now(device) - start)


def open_trials(backbone: Backbone, shots: int) -> Iterator[Trial]:
    """The backbone on each of its data sets, for episodes of at most so many shots."""
    for data, text in backbone.data.items():
        pool = backbone.pool(text).at_least(shots + QUERIES)
        yield Trial(backbone, data, pool, last_layer(backbone.model, pool.images[:2].to(backbone.device)))
