"""Noise on a trained teacher's weights: another teacher of the same spectra for the price of none."""

import torch
from torch import nn


@torch.no_grad()
def perturb_(network: nn.Module, noise: float, generator: torch.Generator) -> None:
    """Add Gaussian noise to every matrix and kernel, in place.

    Its deviation is ``noise`` times the root mean square of each tensor, so it is as strong in every layer. Vectors,
    norms, tables of positions and buffers stay as they are.

    Args:
        noise: as a share, above 0.
        generator: on the CPU, wherever the network is.
    """
    for name, weight in network.named_parameters():
        if name.rpartition(".")[2].endswith("weight") and weight.ndim > 1:
            drawn = torch.randn(weight.shape, generator=generator, dtype=torch.float32).to(weight)
            weight.add_(drawn * (noise * weight.square().mean().sqrt()))
