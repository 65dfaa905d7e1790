"""Meta-training of the hypernetwork on a zoo of trained teachers.

Each rank draws its own teacher, budget and images for each step from a generator seeded by (seed, rank, step), so a run
is the same whatever happened before the step, and a resumed one goes on as if it had never stopped.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from hypercompress.data import Preprocess
from hypercompress.errors import DataError
from hypercompress.generator import HypernetConfig, Hypernetwork, save_hypernetwork
from hypercompress.meta import (
    Case,
    Objective,
    budget_at,
    compression_loss,
    evaluate_case,
    generate,
    meta_loss,
    prepare_case,
    sample_budget,
)
from hypercompress.models import load_model
from hypercompress.packed.unpacking import unpack
from hypercompress.specs import Budget, Unit
from lightning_modules.best import KeepsBest
from lightning_modules.episodes import Episodes, Member
from lightning_modules.images import CachedImages, open_part
from lightning_modules.index import Entry, read_index
from lightning_modules.optimization import Optimization, SettingError
from lightning_modules.randomness import generator_at, seeded
from lightning_modules.resuming import hash_of, settings, weights_of
from lightning_modules.statistics import recall
from lightning_modules.systems import device_of_run, require_finite_loss


class Steps(IterableDataset[int]):
    """Numbers of steps; which ones is asked for anew in each epoch."""

    def __init__(self, numbers: Callable[[], Iterable[int]]) -> None:
        self.numbers = numbers

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers())


class EpisodeModule(LightningDataModule):
    """Feeds step numbers; the system draws everything else itself."""

    def train_dataloader(self) -> DataLoader[int]:
        """One number per backward pass, in each epoch from the one that the run is at.

        Raises:
            SettingError: the run has no number of steps.
        """
        assert self.trainer is not None
        if self.trainer.max_steps < 1:
            raise SettingError(
                f"received max_steps {self.trainer.max_steps}; expected the number of steps, as episodes are drawn "
                "without end and there are no epochs; set --trainer.max_steps"
            )
        return DataLoader(Steps(self._to_come), batch_size=None)

    def _to_come(self) -> range:
        """Not those of an epoch before, where ``trainer.limit_train_batches`` makes several."""
        assert self.trainer is not None
        passes = self.trainer.accumulate_grad_batches
        return range(self.trainer.global_step * passes, self.trainer.max_steps * passes)

    def val_dataloader(self) -> DataLoader[int]:
        """One number: validation is one pass over all teachers."""
        return DataLoader(Steps(lambda: range(1)), batch_size=None)

    def test_dataloader(self) -> DataLoader[int]:
        """As for validation."""
        return self.val_dataloader()


class MetaTraining(KeepsBest):
    """Trains a hypernetwork; rank zero writes the folder of the one that is best on the validation teachers.

    Args:
        zoo: folder of `lightning_modules.zoo`; its held-out teachers are not read.
        out: folder for the hypernetwork of the best validation so far.
        network: shape of the hypernetwork.
        objective: what a step minimises.
        episodes: what the steps are drawn from.
        optimization: optimiser and schedule.
        seed: of the draws.
        statistics: folder that keeps what is measured of the teachers (`lightning_modules.statistics`); by default
            ``.statistics`` in the zoo.
    """

    part = "meta_training"

    def __init__(
        self,
        zoo: Path,
        out: Path,
        network: HypernetConfig | None = None,
        objective: Objective | None = None,
        episodes: Episodes | None = None,
        optimization: Optimization | None = None,
        seed: int = 0,
        statistics: Path | None = None,
    ) -> None:
        super().__init__()
        self.zoo, self.out, self.seed = Path(zoo), Path(out), seed
        self.statistics = Path(statistics or self.zoo / ".statistics")
        self.network = Hypernetwork(network)
        self.objective, self.episodes = objective or Objective(), episodes or Episodes()
        self.optimization = optimization or Optimization("adamw", 1e-3, 1e-2, warmup=0.05)
        self.start = {"seed": str(seed), **settings("objective", self.objective), **settings("episodes", self.episodes)}
        self.members: dict[str, list[Member]] = {}
        self.bases: dict[tuple[str, Budget, str], float] = {}

    def setup(self, stage: str) -> None:
        """Load every teacher, and measure its curvature or read what an earlier start measured.

        Raises:
            DataError: the zoo does not fit (`read_index`). SettingError: a precision that casts the weights.
        """
        super().setup(stage)
        if self.members:
            return
        for entry in read_index(self.zoo, self.episodes.teachers, self.episodes.leave_out):
            rank_zero_info(f"zoo: {entry.name} ({entry.split})")
            self.members.setdefault(entry.split, []).append(self.member(entry, self.statistics))

    def identity(self) -> dict[str, str]:
        """Of the teachers their names and weights: a zoo may be moved, but scores on others are not to be compared."""
        named = {f"teachers of {split}": ", ".join(m.case.name for m in of) for split, of in self.members.items()}
        weights = weights_of((m.case.name, m.weights) for members in self.members.values() for m in members)
        return {**super().identity(), **named, **weights}

    def member(self, entry: Entry, statistics: Path | None = None) -> Member:
        """A teacher with its images; its statistics are kept in the folder ``statistics``, if there is one."""
        teacher, _ = load_model(str(entry.folder))
        weights = hash_of(teacher)
        preprocess = Preprocess.of(teacher)
        train, held_out = (_images(entry.data, preprocess, part) for part in (True, False))
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(len(train), generator=generator)
        count = min(self.episodes.calibration, len(train) // 2)  # of few images half are left for the steps
        calibration, device = train[chosen[:count]], device_of_run(self)
        batches, timed = calibration.to(device).split(128), bool(self.objective.latency)
        unpacked = unpack(teacher.to(device).eval().requires_grad_(False))
        known = recall(statistics, entry.name, unpacked, batches)
        case = prepare_case(entry.name, unpacked, batches, timed=timed, statistics=known)
        refit = calibration[: self.episodes.refit_images].to(device)
        # Drawn, as folders are sorted by class; and after the others, which of a folder without parts are the same set.
        judging = torch.randperm(len(held_out), generator=generator)[: self.episodes.validation]
        return Member(case, refit, train, chosen[count:], held_out[judging], weights)

    def training_step(self, step: int) -> Tensor:
        generator = generator_at(self.seed, self.global_rank, step)
        members = self.members["train"]
        member = members[_draw(len(members), generator)]
        measured = float(torch.rand((), generator=generator)) >= self.episodes.free
        budget = sample_budget(member.case, generator, measured=measured)
        steps = self.episodes.look_ahead[_draw(len(self.episodes.look_ahead), generator)]
        refit = float(torch.rand((), generator=generator)) < self.episodes.refit and measured and steps == 0
        batches = [self._batch(member, generator) for _ in range(steps + 1)]
        emission, regression = generate(self.network, member.case, budget, measured=measured, refit=refit)
        given = member.calibration if refit else None
        with seeded(_draw(2**31, generator), self.device):  # a teacher in training mode may have dropout
            loss, kl = meta_loss(member.case, emission, batches, self.objective, refit=given)
        # Every parameter takes part in every step, as DDP without find_unused_parameters asks.
        touched = sum((p.sum() for p in self.network.parameters()), loss.new_zeros(()))
        loss = loss + self.objective.curvature * regression + 0.0 * touched
        loss = loss + compression_loss(member.case, emission, self.objective).to(loss)
        require_finite_loss(loss, self)
        mode = f"{'data' if measured else 'free'}_{'refit' if refit else steps}"
        self.log_dict({"train/loss": loss}, batch_size=1, sync_dist=True)
        self.log_dict({f"train/kl_{mode}": kl}, batch_size=1)  # of rank zero: each has drawn a mode of its own
        return loss

    def _batch(self, member: Member, generator: torch.Generator) -> Tensor:
        drawn = torch.randint(len(member.places), (self.episodes.images,), generator=generator)
        return member.train[member.places[drawn]].to(self.device)

    def validation_step(self, step: int) -> None:  # noqa: ARG002  (one pass, whatever its number)
        """Mean log ratio of the KL to the analytic start's, on every teacher of either split; below 0 is better."""
        row: dict[str, float] = {"step": float(self.step)}
        for split, members in self.members.items():
            columns: dict[str, list[float]] = {}
            for member in members:
                with seeded(self.seed, self.device):
                    judged = self._judge(member, thorough=split != "train")
                for key, value in judged.items():
                    columns.setdefault(key, []).append(value)
            row.update({f"val/{split}_{key}": math.fsum(v) / len(v) for key, v in columns.items()})
        self.judged(row, score_of(row))

    @torch.inference_mode(False)  # validating on its own is in it, and steps to come need gradients
    @torch.no_grad()
    def _judge(self, member: Member, *, thorough: bool) -> dict[str, float]:
        images = list(member.held_out.to(self.device).split(256))
        generator = torch.Generator().manual_seed(self.seed)
        steps = [self._batch(member, generator) for _ in range(self.episodes.validation_steps)] if thorough else []
        found: dict[str, list[float]] = {}
        modes: dict[str, tuple[bool, list[Tensor], bool]] = {
            "data_0": (True, [], False),
            "data_refit": (True, [], True),
            "free_0": (False, [], False),
        }
        if thorough:
            modes[f"data_{len(steps)}"] = (True, steps, False)
        for key, (measured, ahead, refit) in modes.items():
            budgets = validation_budgets(member.case, measured)
            for budget in budgets if thorough else budgets[1:2]:
                base = self.bases.get((member.case.name, budget, key))
                if base is None:  # the analytic start never changes
                    base = self._kl(member, budget, images, ahead, refit, measured=measured, strength=0.0)
                    self.bases[member.case.name, budget, key] = base
                ours = self._kl(member, budget, images, ahead, refit, measured=measured, strength=1.0)
                found.setdefault(key, []).append(math.log((ours + 1e-3) / (base + 1e-3)))
        return {key: math.fsum(values) / len(values) for key, values in found.items()}

    def _kl(
        self,
        member: Member,
        budget: Budget,
        images: Sequence[Tensor],
        ahead: Sequence[Tensor],
        refit: bool,
        *,
        measured: bool,
        strength: float,
    ) -> float:
        with torch.enable_grad():  # for the distillation steps
            return evaluate_case(
                self.network,
                member.case,
                budget,
                images,
                steps_batches=ahead,
                refit=member.calibration if refit else None,
                measured=measured,
                strength=strength,
                objective=self.objective,
            )

    def write(self) -> None:
        """The hypernetwork, with what it was trained on."""
        card: dict[str, Any] = {
            "step": self.global_step,
            "seed": self.seed,
            "objective": asdict(self.objective),
            "episodes": asdict(self.episodes),
            "teachers": {split: [m.case.name for m in members] for split, members in self.members.items()},
            "curve": self.curve,
        }
        save_hypernetwork(self.network, self.out, card)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return self.optimization.configure([self.network], self.trainer.max_steps)


def score_of(row: Mapping[str, float]) -> float | None:
    """What a validation says of the teachers that choose; ``None`` without such: the one left out chooses nothing."""
    chosen = [value for key, value in row.items() if key.startswith("val/validation_")]
    return math.fsum(chosen) if chosen else None


def validation_budgets(case: Case, measured: bool = True) -> list[Budget]:
    """A hard, a middling and an easy budget of parameters, and a middling one of multiply-accumulates."""
    places = ((Unit.PARAMS, 0.25), (Unit.PARAMS, 0.5), (Unit.PARAMS, 0.75), (Unit.MACS, 0.5))
    return [budget_at(case, unit, place, measured=measured) for unit, place in places]


def _images(data: str, preprocess: Preprocess, train: bool) -> Tensor:
    part = open_part(data, preprocess, train, "none")
    if not isinstance(part, CachedImages):
        raise DataError(f"received {data}, too large to keep in memory; expected a small set for meta-training")
    return part.images


def _draw(count: int, generator: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=generator))
