"""A data module of digits, and an epoch of it."""

import torch
from torch.utils.data.distributed import DistributedSampler

from lightning_modules.data import ImageDataModule, Inputs

GREY = Inputs(input_size=(1, 28, 28), mean=(0.286,), std=(0.353,))


def opened(**options: object) -> ImageDataModule:
    images = ImageDataModule(**{"data": "digits", "inputs": GREY, **options})
    images.setup("fit")
    return images


def epoch(images: ImageDataModule, number: int) -> torch.Tensor:
    loader = images.train_dataloader()
    assert isinstance(loader.sampler, DistributedSampler)
    loader.sampler.set_epoch(number)  # as Lightning does
    return torch.cat([batch for batch, _ in loader])
