"""How episodes are run: one by one or in stacks, by one process or by several that divide them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.few_shot.adapted import ADAPTED, adapt_episode, adapt_together
from benchmarks.few_shot.backbones import Backbone
from benchmarks.few_shot.stacked import tune_together
from benchmarks.few_shot.tuning import BATCH, Outcome, constant, tune
from hypercompress.data import Episode
from hypercompress.transfer.tuning import schedule


@dataclass(frozen=True)
class Solving:
    """How episodes are run.

    Args:
        network: of ours, see `network_folder`.
        stack: images of one step of several episodes together, see `stacked`; 0: episodes one by one.
        claims: a folder that processes share: a part of the work belongs to the one that first makes its file there.
            ``None``: all of it is done here.
        cosine: whether the baselines' rate goes up and down as ours does (`hypercompress.transfer.tuning.schedule`)
            instead of being constant.
    """

    network: str = "auto"
    stack: int = 0
    claims: Path | None = None
    cosine: bool = False

    @property
    def alone(self) -> bool:
        """Whether an episode has seconds of its own: neither stacked nor beside other processes."""
        return not self.stack and self.claims is None

    def take(self, *words: object) -> bool:
        """Whether the part of the work with this name is ours to do, which then it is for no other process."""
        if self.claims is None:
            return True
        self.claims.mkdir(parents=True, exist_ok=True)
        try:
            (self.claims / "_".join(map(str, words))).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def groups(self, waiting: Sequence[range], images: int, *name: object) -> Iterator[list[range]]:
        """Blocks of episodes that are run together, of those that `take` gives us.

        Args:
            images: support images of an episode.
            name: of the work, but for the block.
        """
        group = list[range]()
        for numbers in waiting:
            if self.take(*name, numbers.start):
                group.append(numbers)
            if group and sum(map(len, group)) + len(numbers) > self.together(images):
                yield group
                group = []
        if group:
            yield group

    def together(self, images: int) -> int:
        """Episodes of a stack.

        Args:
            images: support images of an episode.
        """
        return max(1, self.stack // min(BATCH, images))

    def solve(
        self,
        backbone: Backbone,
        last: str,
        episodes: Sequence[Episode],
        method: str,
        rate: float | None,
        steps: Sequence[int],
        seeds: Sequence[int],
    ) -> list[dict[int, Outcome]]:
        """Outcomes of each episode by number of steps.

        Args:
            last: see `counting`.
            episodes: of one size.
            method: of `TUNED` or `ADAPTED`.
            rate: ``None`` without steps, and where `adapt` finds it.
            seeds: one for each episode.
        """
        if self.cosine and method not in ADAPTED and len(steps) > 1:  # each number of them ends at 0
            parts = [self.solve(backbone, last, episodes, method, rate, [count], seeds) for count in steps]
            return [{count: run[count] for run in runs for count in run} for runs in zip(*parts, strict=True)]
        size, found = self.together(len(episodes[0].support)), list[dict[int, Outcome]]()
        for first in range(0, len(episodes), size):
            some, drawn = episodes[first : first + size], seeds[first : first + size]
            if self.stack and method in ADAPTED:
                found += adapt_together(backbone, last, some, method, steps, self.network, drawn, rate)
            elif self.stack:
                assert rate is not None
                found += tune_together(backbone, some, method, rate, steps, drawn, self._share(steps))
            else:
                found += [
                    self._one(backbone, last, episode, method, rate, steps, seed)
                    for episode, seed in zip(some, drawn, strict=True)
                ]
        return found

    def _share(self, steps: Sequence[int]) -> Callable[[int], float]:
        return schedule(max(steps)) if self.cosine else constant

    def _one(
        self,
        backbone: Backbone,
        last: str,
        episode: Episode,
        method: str,
        rate: float | None,
        steps: Sequence[int],
        seed: int,
    ) -> dict[int, Outcome]:
        if method in ADAPTED:
            found = {
                count: adapt_episode(backbone, last, episode, method, count, self.network, seed, rate)
                for count in steps
            }
        else:
            assert rate is not None
            found = tune(backbone, last, episode, method, rate, steps, seed, self._share(steps))
        return found if self.alone else {count: replace(o, seconds=None) for count, o in found.items()}
