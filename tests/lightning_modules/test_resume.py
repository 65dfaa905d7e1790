"""A run that goes on from a checkpoint ends with the weights of the run that never stopped, bit for bit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_modules.data import ImageDataModule
from lightning_modules.teacher import Optimization, Teacher

MODEL_ARGS = {"in_chans": 1, "num_classes": 10, "drop_rate": 0.5, "drop_path_rate": 0.3}
PRETRAINED_CFG = {"input_size": [1, 28, 28], "mean": [0.286], "std": [0.353]}


def system() -> Teacher:
    torch.manual_seed(0)
    return Teacher("test_efficientnet", MODEL_ARGS, PRETRAINED_CFG, optimization=Optimization("adamw", 1e-3, 0.0))


def images(augment: str) -> ImageDataModule:
    return ImageDataModule("fashion_mnist_mini", batch_size=16, limit=96, val_limit=32, augment=augment)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.parametrize("augment", ["flip", "crop"])
@pytest.mark.parametrize("limit", [1.0, 4, 0.5])  # of the 6 batches of an epoch
def test_the_rest_of_a_run_is_that_of_the_whole(
    limit: float, augment: str, trainer: Callable[..., Trainer], tmp_path: Path
) -> None:
    """With dropout, stochastic depth and validation; from the end of an epoch and from after its first step."""
    saving = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    options: dict[str, Any] = {"max_steps": 10, "limit_train_batches": limit, "enable_checkpointing": True}
    options |= {"val_check_interval": 0.5, "callbacks": [saving]}
    whole = system()
    trainer(**options).fit(whole, images(augment))
    used = {1.0: 6, 4: 4, 0.5: 3}[limit]
    for step in (used, used + 1):
        resumed = system()
        torch.manual_seed(123)  # another process would not have the random state of this one either
        run = trainer(**options)
        run.fit(resumed, images(augment), ckpt_path=tmp_path / f"step={step}.ckpt", weights_only=True)
        assert run.global_step == 10
        state = resumed.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in whole.state_dict().items()), step
