"""What a distillation finds out from its first batches where the user did not say it: the learning rate, how BatchNorms
normalise, and whether images are mixed. A run that goes on keeps what it found.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from hypercompress.losses import distillation_kl
from hypercompress.running.calling import evaluating, keeping_random_state
from lightning_modules.data import images_of, seed_of_run
from lightning_modules.norms import freeze_if_better, freeze_norms, refilling
from lightning_modules.optimization import Optimization, SettingError
from lightning_modules.randomness import generator_at
from lightning_modules.rates import first_steps, rate_for, require_choice, scale_rates

Norms = Literal["auto", "training", "frozen"]
Mixing = bool | Literal["auto"]
# Training images, up to which mixing them helps (chosen on one network), and nats from the teacher, from which on it is
# in the way of steps that have most of the way before them (on it and one that is held out; LOG.md, 2026-11-30).
FEW, FAR = 512, 1.0


class Beginning:
    """The choices of one run.

    Args:
        optimization: whose rate may be ``auto``.
        norms: BatchNorms normalise by the batch (``training``) or keep their moments (``frozen``).
        mixing: whether images of a step are pasted into each other (`mixing.mixed`); ``auto``: if they are few and the
            student is not far.
        followed: whether the steps follow a teacher and no labels; else norms train and nothing is mixed.

    Attributes:
        rate: the highest one; 0 where there is nothing to learn. ``None``: not known yet, as of the others.
        frozen: whether the norms are.
        mixed: whether the images are.
    """

    def __init__(self, optimization: Optimization, norms: Norms, mixing: Mixing, *, followed: bool) -> None:
        self.optimization, self.norms, self.mixing, self.followed = optimization, norms, mixing, followed
        self.rate: float | None = None
        self.frozen: bool | None = None
        self.mixed: bool | None = None

    def ask(self) -> None:
        """Ahead of a fit: take what the user says.

        Raises:
            SettingError: a rate of ``auto`` with labels or with another optimiser than AdamW; images that are mixed and
                have labels to follow, or norms that would take their moments; a word for mixing that is none.
        """
        require_choice(self.optimization, self.followed)
        if self.mixing not in (True, False, "auto"):
            raise SettingError(f"received mixing {self.mixing!r}; expected True, False or 'auto'; change it")
        if self.mixing is True and not self.followed:
            raise SettingError(
                "received --model.mixing true with labels to follow or without a teacher; expected a teacher alone, as "
                "mixed images are of no class; set the weight of the labels to 0, or leave mixing out"
            )
        if self.mixing is True and self.norms == "training":
            raise SettingError(
                "received --model.mixing true and norms training; expected norms that keep their moments, as those of "
                "mixed images are not those of whole ones; set --model.norms frozen, or leave it out"
            )
        self.rate = None if self.optimization.lr == "auto" else self.optimization.lr
        possible = self.mixing == "auto" and self.followed and self.norms != "training"
        self.mixed = None if possible else self.mixing is True
        self.frozen = None if self.norms == "auto" and not self.mixed else self.norms == "frozen" or self.mixed

    def start(self, system: LightningModule, network: nn.Module) -> None:
        """As the training starts, or goes on: what can be told without a batch.

        Raises:
            SettingError: norms are to be frozen that a callback has to fill.
        """
        if refilling(system.trainer):
            if self.norms == "frozen" or self.mixing is True:
                asked = "norms frozen" if self.norms == "frozen" else "mixing true"
                raise SettingError(
                    f"received --model.{asked} with StochasticWeightAveraging, which empties the moments of BatchNorms "
                    "and has training mode fill them; expected one of the two; use EMAWeightAveraging"
                )
            self.frozen = self.mixed = False
        if self.frozen:
            freeze_norms(network)

    @property
    def known(self) -> bool:
        """Whether there is nothing left for a batch to say, and something to learn."""
        return self.rate not in (None, 0) and None not in (self.frozen, self.mixed)

    def begin(
        self,
        system: LightningModule,
        network: nn.Module,
        images: Float[Tensor, "b c h w"],
        answer: Callable[[Tensor], Tensor],
    ) -> None:
        """What the first batches say.

        Args:
            images: the first batch.
            answer: the teacher's logits, as exact as they are.
        """
        trainer = system.trainer
        if self.rate is None:
            self.rate = rate_for(network, first_steps(system, images, answer), trainer.strategy)
            scale_rates(trainer.optimizers[0], trainer.lr_scheduler_configs[0].scheduler, self.rate)
        if self.rate == 0:
            trainer.should_stop = True
        if not self.followed:
            self.frozen = bool(self.frozen)
            return
        kl = partial(distillation_kl, teacher=answer(images))
        if self.mixed is None:
            self.mixed = self.rate != 0 and self._to_be_mixed(system, network, images, kl)
            if self.mixed:
                self.frozen = True
                freeze_norms(network)
        if self.frozen is None:
            self.frozen = freeze_if_better(network, images, kl, trainer.strategy)

    @staticmethod
    @torch.no_grad()
    def _to_be_mixed(
        system: LightningModule, network: nn.Module, images: Float[Tensor, "b c h w"], kl: Callable[[Tensor], Tensor]
    ) -> bool:
        """Whether they are few, several in a batch, and the student is not far from its teacher on the first batch."""
        data, strategy = images_of(system), system.trainer.strategy
        count = None if data is None else data.training_images()
        if count is None or count > FEW or len(images) < 2:
            return False
        with keeping_random_state(network), evaluating(network):
            far = float(strategy.reduce(kl(network(images)), reduce_op="mean"))
        if far < FAR:
            rank_zero_info(
                f"{count} training images are few: in each step every one has a box of another, and BatchNorms "
                "keep the moments they have (to leave images whole: --model.mixing false)"
            )
        return far < FAR

    def random(self, system: LightningModule) -> torch.Generator:
        """What a step's mixing is drawn from: by seed, rank and number of the batch, the same in a run that goes on."""
        return generator_at(seed_of_run(), system.trainer.global_rank, system.trainer.fit_loop.total_batch_idx)

    def said(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"norms_frozen": self.frozen, "rate": self.rate, "mixed": self.mixed}

    def go_on(self, checkpoint: Mapping[str, Any]) -> None:
        """With what a checkpoint has kept of what was left to be found out; those of earlier versions say less."""
        if self.norms == "auto":
            self.frozen = checkpoint.get("norms_frozen", False)  # the first versions trained them
        if self.mixing == "auto":
            self.mixed = checkpoint.get("mixed", False)
        if self.optimization.lr == "auto":
            self.rate = checkpoint["rate"] if "rate" in checkpoint else checkpoint["lr_schedulers"][0]["base_lrs"][0]
