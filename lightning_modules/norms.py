"""How BatchNorm normalises while a student is distilled: by the batch, or by its running moments, kept as they are.

By the batch each image's logits depend on the images beside it, and the running moments follow the last few batches;
a teacher in evaluation mode does neither. Where that costs more than the student lacks, steps have to make up for it
first, and at a learning rate of 0 the student becomes worse (LOG.md, 2026-11-27).
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.strategies import Strategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from hypercompress.running.calling import evaluating, keeping_random_state
from hypercompress.running.norms import remembering_norms
from lightning_modules.optimization import SettingError

COSTS = 1.4  # above it norms are better frozen; chosen on teachers that meta-training has seen
MANY = 1000  # more is not told


def freeze_norms(model: nn.Module) -> None:
    """Put every BatchNorm that has running moments into evaluation mode, in place; scale and shift still learn."""
    for norm in remembering_norms(model):
        norm.eval()


@torch.no_grad()
def batch_costs(
    model: nn.Module, images: Float[Tensor, "b c h w"], loss: Callable[[Tensor], Float[Tensor, ""]]
) -> float | None:
    """The loss by the moments of the batch over that by the running ones, all else in evaluation mode.

    The model, its buffers and torch's random state stay as they were.

    Args:
        images: a batch as the steps have it; the moments of a single image are none, and the cost is infinite.
        loss: of the model's output.

    Returns:
        A number to compare with `COSTS`; ``None`` without BatchNorm.
    """
    norms = remembering_norms(model)
    if not norms:
        return None
    if len(images) < 2:
        return math.inf
    with keeping_random_state(model), evaluating(model):
        kept = float(loss(model(images)))
        for norm in norms:
            norm.train()
        return float(loss(model(images))) / max(kept, 1e-12)


def freeze_if_better(
    model: nn.Module, images: Float[Tensor, "b c h w"], loss: Callable[[Tensor], Float[Tensor, ""]], strategy: Strategy
) -> bool:
    """Freeze the norms in place if `batch_costs` says so, of several ranks their mean; whether they are."""
    costs = batch_costs(model, images, loss)
    if costs is None:
        return False
    costs = float(strategy.reduce(torch.tensor(costs, device=images.device), reduce_op="mean"))
    frozen = costs > COSTS
    if frozen:
        freeze_norms(model)
    times = f"{costs:.3g}" if costs < MANY else f"more than {MANY}"
    verdict = "keeps the moments it has" if frozen else "normalises by the batch"
    rank_zero_info(f"a batch's own moments make the KL to the teacher {times} times as large: BatchNorm {verdict}")
    return frozen


@contextmanager
def several_images() -> Iterator[None]:
    """What torch raises where a BatchNorm that trains sees a single value of each channel becomes a `SettingError`."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise SettingError(
            "received a batch of one image for BatchNorms that normalise by the batch; expected two or more, as one "
            "value has no spread; raise --data.batch_size, or in a distillation set --model.norms frozen"
        ) from error


def refilling(trainer: Trainer) -> bool:
    """Whether a callback empties the running moments and has training mode fill them again."""
    return any(isinstance(callback, StochasticWeightAveraging) for callback in trainer.callbacks)  # type: ignore[attr-defined]
