"""What a distillation finds out from its images where the user did not say it: the learning rate, how BatchNorms
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
from lightning_modules.data import images_of
from lightning_modules.norms import freeze_if_better, freeze_norms, refilling
from lightning_modules.optimization import Optimization, SettingError
from lightning_modules.rates import first_steps, rate_for, require_choice, scale_rates

Norms = Literal["auto", "training", "frozen"]
Mixing = bool | Literal["auto"]
FEW = 512  # training images, up to which mixing them helps: chosen on one network, confirmed on others (LOG.md)


class Beginning:
    """The choices of one run.

    Args:
        optimization: whose rate may be ``auto``.
        norms: BatchNorms normalise by the batch (``training``) or keep their moments (``frozen``).
        mixing: whether images of a step are pasted into each other (`mixing.mixed`); ``auto``: if they are few.
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
                have labels to follow, or norms that would take their moments.
        """
        require_choice(self.optimization, self.followed)
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
        self.mixed = None if self.mixing == "auto" and self.followed else self.mixing is True
        self.frozen = None if self.norms == "auto" else self.norms == "frozen"

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
        if self.mixed is None:
            data = images_of(system)
            count = None if data is None else data.training_images()
            self.mixed = count is not None and count <= FEW and self.norms != "training"
            if self.mixed:
                rank_zero_info(
                    f"{count} training images, few enough to be mixed: each gets a box of another, BatchNorm keeps the "
                    "moments it has (--model.mixing false)"
                )
        self.frozen = True if self.mixed else self.frozen
        if self.frozen:
            freeze_norms(network)

    @property
    def known(self) -> bool:
        """Whether there is nothing left for a batch to say, and something to learn."""
        return self.rate not in (None, 0) and self.frozen is not None

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
        if self.frozen is None:
            self.frozen = False
            if self.followed:
                kl = partial(distillation_kl, teacher=answer(images))
                self.frozen = freeze_if_better(network, images, kl, trainer.strategy)

    def random(self, system: LightningModule) -> torch.Generator:
        """What a step's mixing is drawn from: by rank and number of the batch, the same in a run that goes on."""
        place = (system.trainer.fit_loop.total_batch_idx, system.trainer.global_rank)
        return torch.Generator().manual_seed(hash(place) % 2**63)

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
