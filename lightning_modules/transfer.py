"""Meta-training of the transfer network: episodes over several backbones, data sets and domains.

Each rank draws backbone, set, domain and episode of each step from a generator seeded by (seed, rank, step), so a run
is the same whatever happened before the step, and a resumed one goes on as if it had never stopped.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from hypercompress.data import Preprocess, open_data
from hypercompress.data.domains import in_domain
from hypercompress.data.episodes import Episode, Pool, draw_sizes, read_pool, sample_episode, split_classes
from hypercompress.errors import DataError
from hypercompress.models import load_model
from hypercompress.transfer import Outcome, TransferConfig, TransferNetwork, episode_outcome, save_network
from hypercompress.transfer.adaptable import Site, adaptable
from hypercompress.transfer.backbone import Backbone
from lightning_modules.best import KeepsBest
from lightning_modules.teacher import Optimization, device_of_run, require_finite


@dataclass(frozen=True)
class Sources:
    """What episodes are drawn from; test images never are.

    Args:
        backbones, held_backbones: student folders: to learn from, and to validate on.
        data: sets to learn from; of their classes a share is held out.
        held_data: set that is only validated on. Classes of ``data`` that bear a name of its classes are left out.
        domains: names of `hypercompress.data.domains`; one is drawn for each episode.
        limit: images of a set, at most.
        held_classes: share of each set's classes that is held out, in (0, 1).
    """

    backbones: tuple[str, ...]
    held_backbones: tuple[str, ...]
    data: tuple[str, ...]
    held_data: str
    domains: tuple[str, ...] = ("plain",)
    limit: int = 8000
    held_classes: float = 0.25


@dataclass(frozen=True)
class Sizes:
    """Sizes of the episodes.

    Args:
        ways, shots: the least and the most.
        queries: images of each class that an episode is judged on.
        validation: episodes of each kind in a validation.
        clip: largest norm of the gradient of one episode; a few hard ones would drown the others.
    """

    ways: tuple[int, int] = (3, 7)
    shots: tuple[int, int] = (1, 8)
    queries: int = 8
    validation: int = 24
    clip: float = 1.0


@dataclass(frozen=True)
class Member:
    """A frozen backbone with its images, prepared for it."""

    backbone: Backbone
    sites: tuple[Site, ...]
    preprocess: Preprocess
    train: tuple[Pool, ...]
    held_classes: tuple[Pool, ...]
    held_data: Pool


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
        self.members: dict[str, list[Member]] = {}

    def setup(self, stage: str) -> None:  # noqa: ARG002  (Lightning passes it by name)
        """Load every backbone and prepare its images, once."""
        if not self.members:
            parts = {"train": self.sources.backbones, "held": self.sources.held_backbones}
            self.members = {part: [self._member(folder) for folder in folders] for part, folders in parts.items()}
        if not all(self.members.values()):
            raise DataError(
                f"received {len(self.members['train'])} backbones and {len(self.members['held'])} held out; expected "
                "at least one of each; name student folders"
            )

    def _member(self, folder: str) -> Member:
        rank_zero_info(f"backbone: {folder}")
        model, _ = load_model(folder)
        backbone = Backbone(model.requires_grad_(False)).to(device_of_run(self))
        preprocess = Preprocess.of(model)
        held = open_data(self.sources.held_data, preprocess, train=True)
        pools = []
        for name in self.sources.data:
            data = open_data(name, preprocess, train=True)
            pool = read_pool(name, data, self.sources.limit, self.seed)
            pool = pool.only([k for k in pool.classes if data.classes[k] not in held.classes])
            pools.append(split_classes(pool, 1 - self.sources.held_classes, self.seed))
        return Member(
            backbone,
            tuple(s for s in adaptable(model, backbone.classifier).sites if s.role in self.network.config.roles),
            preprocess,
            tuple(first for first, _ in pools),
            tuple(second for _, second in pools),
            read_pool(self.sources.held_data, held, self.sources.limit, self.seed),
        )

    def training_step(self, step: int) -> Tensor:
        generator = torch.Generator().manual_seed(hash((self.seed, self.global_rank, step)) % 2**63)
        member = _drawn(self.members["train"], generator)
        outcome = self.outcome(member, _drawn(member.train, generator), generator)
        require_finite(outcome.loss, self.global_step)
        loss = float(outcome.loss.detach())
        self.log_dict({"train/loss": loss, "train/change": loss - outcome.plain_loss}, batch_size=1)
        return clipped(outcome.loss, list(self.network.parameters()), self.sizes.clip)

    def outcome(self, member: Member, pool: Pool, generator: torch.Generator, domain: str | None = None) -> Outcome:
        """Draw an episode and run it."""
        ways, shots = draw_sizes(pool, self.sizes.ways, self.sizes.shots, self.sizes.queries, generator)
        episode = sample_episode(pool, ways, shots, self.sizes.queries, generator)
        episode = moved(episode, member.preprocess, domain or _drawn(self.sources.domains, generator), generator)
        support = (episode.support.to(self.device), episode.support_labels.to(self.device))
        query = (episode.query.to(self.device), episode.query_labels.to(self.device))
        return episode_outcome(self.network, member.backbone, member.sites, support, query)

    def validation_step(self, step: int) -> None:  # noqa: ARG002  (one pass, whatever its number)
        """Mean change of the query loss and of the accuracy against ridge regression, on backbones never trained on."""
        row: dict[str, float] = {"step": float(self.global_step)}
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
