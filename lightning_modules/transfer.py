"""Meta-training of the transfer network: episodes over several backbones, data sets and domains.

Each rank draws backbone, set, domain and episode of each step from a generator seeded by (seed, rank, step), so a run
is the same whatever happened before the step, and a resumed one goes on as if it had never stopped.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from hypercompress.data import ImageData, Preprocess, open_data
from hypercompress.data.domains import DOMAINS, in_domain
from hypercompress.data.episodes import Episode, Pool, draw_sizes, read_pool, sample_episode, split_classes
from hypercompress.errors import DataError
from hypercompress.models import load_model
from hypercompress.transfer import Outcome, TransferConfig, TransferNetwork, episode_outcome, save_network
from hypercompress.transfer.adaptable import Site, adaptable
from hypercompress.transfer.backbone import Backbone
from lightning_modules.best import KeepsBest
from lightning_modules.optimization import Optimization, SettingError
from lightning_modules.randomness import generator_at
from lightning_modules.resuming import hash_of, settings, weights_of
from lightning_modules.systems import device_of_run, require_finite_loss


@dataclass(frozen=True)
class Sources:
    """What episodes are drawn from; test images never are.

    Args:
        backbones, held_backbones: student folders: to learn from, and to validate on.
        data: sets to learn from; of their classes a share is held out.
        held_data: set that is only validated on. Classes of ``data`` that bear a name of its classes are left out.
        domains: names of `hypercompress.data.domains`; one is drawn for each episode.
        limit: images of a set, at most. Classes of which it leaves too few for the smallest episode are left out.
        held_classes: share of each set's classes that is held out, in (0, 1).

    Raises:
        DataError: none of something, an unknown domain, or a backbone of both kinds.
    """

    backbones: tuple[str, ...]
    held_backbones: tuple[str, ...]
    data: tuple[str, ...]
    held_data: str
    domains: tuple[str, ...] = ("plain",)
    limit: int = 8000
    held_classes: float = 0.3

    def __post_init__(self) -> None:
        if not (self.backbones and self.held_backbones):
            raise DataError(
                f"received {len(self.backbones)} backbones and {len(self.held_backbones)} held out; expected at least "
                "one of each; name student folders"
            )
        learnt, held = ({Path(folder).resolve() for folder in part} for part in (self.backbones, self.held_backbones))
        if both := sorted(str(folder) for folder in learnt & held):
            raise DataError(
                f"received {', '.join(both)} among the backbones and among those held out; expected each in one of "
                "them, as what was learnt on chooses nothing; take it out of one"
            )
        unknown = sorted(set(self.domains) - set(DOMAINS))
        if unknown or not (self.domains and self.data):
            raise DataError(
                f"received {len(self.data)} sets of data and the domains {', '.join(self.domains) or 'none'}; expected "
                f"at least one of each, domains among {', '.join(DOMAINS)}; change sources"
            )


@dataclass(frozen=True)
class Sizes:
    """Sizes of the episodes.

    Args:
        ways, shots: the least and the most.
        queries: images of each class that an episode is judged on.
        validation: episodes of each kind in a validation.
        clip: largest norm of the gradient of one episode; a few hard ones would drown the others.

    Raises:
        SettingError: of `ways` and `shots` the most is below the least, or there are none of something.
    """

    ways: tuple[int, int] = (3, 7)
    shots: tuple[int, int] = (1, 8)
    queries: int = 8
    validation: int = 24
    clip: float = 1.0

    def __post_init__(self) -> None:
        (fewest, most), (least, last) = self.ways, self.shots
        if not (
            2 <= fewest <= most and 1 <= least <= last and min(self.queries, self.validation) >= 1 and self.clip > 0
        ):
            raise SettingError(
                f"received ways {fewest} to {most}, shots {least} to {last}, queries {self.queries}, validation "
                f"{self.validation}, clip {self.clip:g}; expected the least of each before the most, 2 ways or more, 1 "
                "of each of the others, and a clip above 0; change them"
            )


@dataclass(frozen=True)
class Member:
    """A frozen backbone with its images, prepared for it."""

    backbone: Backbone
    sites: tuple[Site, ...]
    preprocess: Preprocess
    train: tuple[Pool, ...]
    held_classes: tuple[Pool, ...]
    held_data: Pool
    weights: tuple[str, str]  # name and `hash_of`


class TransferTraining(KeepsBest):
    """Trains a transfer network; at each best validation on held-out classes rank zero writes its folder.

    Args:
        sources: backbones and data.
        out: folder for the network.
        network: shape of the network.
        sizes: of the episodes.
        optimization: optimiser and schedule.
        seed: of the draws and of the class splits.
    """

    part = "transfer"

    def __init__(
        self,
        sources: Sources,
        out: Path,
        network: TransferConfig | None = None,
        sizes: Sizes | None = None,
        optimization: Optimization | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.sources, self.out, self.seed = sources, Path(out), seed
        self.network, self.sizes = TransferNetwork(network), sizes or Sizes()
        self.optimization = optimization or Optimization("adamw", 3e-4, 1e-2, warmup=0.05)
        self.start = {"seed": str(seed), **settings("sizes", self.sizes), **settings("sources", sources)}
        self.start |= {f"sources.{key}": ", ".join(names) for key, names in _names(sources).items()}
        self.members: dict[str, list[Member]] = {}

    def setup(self, stage: str) -> None:
        """Load every backbone and prepare its images, once.

        Raises:
            DataError: a set that cannot fill the smallest episodes. SettingError: a precision that casts the weights.
        """
        super().setup(stage)
        parts = {"train": self.sources.backbones, "held": self.sources.held_backbones}
        if not self.members:
            self.members = {part: [self._member(folder) for folder in folders] for part, folders in parts.items()}

    def _member(self, folder: str) -> Member:
        rank_zero_info(f"backbone: {folder}")
        model, _ = load_model(folder)
        weights = (Path(folder).name, hash_of(model))
        backbone = Backbone(model.requires_grad_(False)).to(device_of_run(self))
        preprocess = Preprocess.of(model)
        held = open_data(self.sources.held_data, preprocess, train=True)
        pools = [self._split(name, open_data(name, preprocess, train=True), held.classes) for name in self.sources.data]
        return Member(
            backbone,
            tuple(s for s in adaptable(model, backbone.classifier).sites if s.role in self.network.config.roles),
            preprocess,
            tuple(first for first, _ in pools),
            tuple(second for _, second in pools),
            self._pool(self.sources.held_data, held, self.sizes.ways[0]),
            weights,
        )

    def identity(self) -> dict[str, str]:
        """With the weights of the backbones: they may be moved, but scores on others are not to be compared."""
        return {**super().identity(), **weights_of(m.weights for members in self.members.values() for m in members)}

    def _split(self, name: str, data: ImageData, held: Sequence[str]) -> tuple[Pool, Pool]:
        """The classes of a set to learn from, and those that are held out; none bears one of the names in ``held``.

        Raises:
            DataError: one of the two cannot fill the smallest episode.
        """
        ways, share = self.sizes.ways[0], self.sources.held_classes
        first, second = split_classes(self._pool(name, data, 2 * ways, held), 1 - share, self.seed)
        if min(len(first.classes), len(second.classes)) < ways:
            raise DataError(
                f"received held_classes {share:g}, which parts the classes of {name} into {len(first.classes)} and "
                f"{len(second.classes)}; expected at least {ways} in each, the least of sizes.ways; choose another "
                "share or fewer ways, or raise sources.limit if it leaves classes out"
            )
        return first, second

    def _pool(self, name: str, data: ImageData, classes: int, without: Sequence[str] = ()) -> Pool:
        """The images of a set, without classes of too few for the smallest episode, which a small limit leaves.

        Args:
            classes: the fewest that will do.
            without: names of other classes that are left out.

        Raises:
            DataError: fewer classes are left.
        """
        pool, least = read_pool(name, data, self.sources.limit, self.seed), self.sizes.shots[0] + self.sizes.queries
        named = [label for label in pool.classes if data.classes[label] not in without]
        kept = [label for label in named if len(pool.places[label]) >= least]
        if len(kept) < classes:
            raise DataError(
                f"received {len(kept)} classes of {name} with the {least} images of an episode, among {len(pool)} "
                f"images; expected at least {classes}; raise sources.limit, ask for fewer ways, shots or queries in "
                "sizes, or choose another set"
            )
        if len(kept) < len(named):
            rank_zero_info(f"{name}: left out {len(named) - len(kept)} classes of fewer than {least} images")
        return pool.only(kept)

    def training_step(self, step: int) -> Tensor:
        generator = generator_at(self.seed, self.global_rank, step)
        member = _drawn(self.members["train"], generator)
        outcome = self.outcome(member, _drawn(member.train, generator), generator)
        require_finite_loss(outcome.loss, self)
        loss = float(outcome.loss.detach())
        self.log_dict({"train/loss": loss, "train/change": loss - outcome.plain_loss}, batch_size=1, sync_dist=True)
        return clipped(outcome.loss, list(self.network.parameters()), self.sizes.clip)

    def outcome(self, member: Member, pool: Pool, generator: torch.Generator, domain: str | None = None) -> Outcome:
        """Draw an episode and run it."""
        ways, shots = draw_sizes(pool, self.sizes.ways, self.sizes.shots, self.sizes.queries, generator)
        episode = sample_episode(pool, ways, shots, self.sizes.queries, generator)
        episode = moved(episode, member.preprocess, domain or _drawn(self.sources.domains, generator), generator)
        episode = episode.to(self.device)
        support, query = (episode.support, episode.support_labels), (episode.query, episode.query_labels)
        return episode_outcome(self.network, member.backbone, member.sites, support, query)

    def validation_step(self, step: int) -> None:  # noqa: ARG002  (one pass, whatever its number)
        """Mean change of the query loss and of the accuracy against ridge regression, on backbones never trained on."""
        row: dict[str, float] = {"step": float(self.step)}
        for kind in ("held_classes", "held_data"):
            generator = torch.Generator().manual_seed(self.seed)
            found = []
            for index in range(self.sizes.validation):
                member = self.members["held"][index % len(self.members["held"])]
                pool = member.held_data if kind == "held_data" else _drawn(member.held_classes, generator)
                found.append(self.outcome(member, pool, generator, "plain" if kind == "held_data" else None))
            row[f"val/{kind}_loss"] = _mean([float(o.loss) - o.plain_loss for o in found])
            row[f"val/{kind}_accuracy"] = _mean([o.accuracy - o.plain_accuracy for o in found])
        self.judged(row, row["val/held_classes_loss"])  # on classes that it was not trained on

    def write(self) -> None:
        """The transfer network, with what it was trained on."""
        card: dict[str, Any] = {"step": self.global_step, "seed": self.seed, "sizes": asdict(self.sizes)}
        card |= {"sources": {**asdict(self.sources), **_names(self.sources)}, "curve": self.curve}
        save_network(self.network, self.out, card)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return self.optimization.configure([self.network], self.trainer.max_steps)


def clipped(loss: Tensor, parameters: list[torch.nn.Parameter], most: float) -> Tensor:
    """A scalar with the gradient of ``loss``, its norm at most ``most``; every parameter takes part, as DDP asks."""
    gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
    norm = torch.stack([g.norm() for g in gradients]).norm()
    factor = (most / norm.clamp_min(1e-12)).clamp_max(1.0)
    return torch.stack([(factor * g * p).sum() for p, g in zip(parameters, gradients, strict=True)]).sum()


def moved(episode: Episode, preprocess: Preprocess, domain: str, generator: torch.Generator) -> Episode:
    """The episode in a domain; images are brought back to [0, 1] for it."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std))

    def there(images: Tensor) -> Tensor:
        return (in_domain((images * std + mean).clamp(0, 1), domain, generator) - mean) / std

    support, query = there(episode.support), there(episode.query)
    return Episode(support, episode.support_labels, query, episode.query_labels, episode.classes)


def _names(sources: Sources) -> dict[str, list[str]]:
    """Backbones and data by name: where they lay is nobody's business."""
    places = {"backbones": sources.backbones, "held_backbones": sources.held_backbones, "data": sources.data}
    places["held_data"] = (sources.held_data,)
    return {key: [Path(text.partition(":")[0]).name for text in texts] for key, texts in places.items()}


def _drawn(options: Any, generator: torch.Generator) -> Any:
    return options[int(torch.randint(len(options), (), generator=generator))]


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values)
