"""Low-rank adapters on the layers of a frozen network (Hu et al. 2021, LoRA, arXiv 2106.09685, section 4.1).

``W' = W + B A`` with ``A`` [r, d] random and ``B`` [out, r] zero, for linear layers and convolutions of one group: a
convolution is the matrix of its unfolded kernel. torch's parametrizations carry it, so any subclass with a ``weight``
will do (peft knows no padded convolutions of timm).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

RANK = 4
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Adapter(nn.Module):
    """Adds ``B A`` to a weight.

    Args:
        weight: of the layer.
        rank: of the change, at most the weight's.
        generator: draws ``A``.
    """

    def __init__(self, weight: Float[Tensor, "out *d"], rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        rank = min(rank, rows, columns)
        self.a = nn.Parameter(weight.new_empty(rank, columns))
        self.b = nn.Parameter(weight.new_zeros(rows, rank))
        self.a.data.copy_(self.draw(generator))

    def draw(self, generator: torch.Generator) -> Float[Tensor, "r d"]:
        """A fresh ``A``, Kaiming uniform, as peft and the paper's code have it; the same on all devices."""
        return (2 * torch.rand(*self.a.shape, generator=generator) - 1) / math.sqrt(self.a.shape[1])

    def forward(self, weight: Float[Tensor, "out *d"]) -> Float[Tensor, "out *d"]:
        return weight + (self.b @ self.a).view_as(weight)


def add_adapters(model: nn.Module, without: nn.Module, rank: int, seed: int) -> list[nn.Parameter]:
    """Put adapters into a model, which stays the function it is; their parameters.

    Args:
        without: the classifier.
    """
    generator, added = torch.Generator().manual_seed(seed), list[nn.Parameter]()
    for module in list(model.modules()):
        if isinstance(module, LAYERS) and module is not without and getattr(module, "groups", 1) == 1:
            adapter = Adapter(module.weight, rank, generator)
            parametrize.register_parametrization(module, "weight", adapter)
            added += [adapter.a, adapter.b]
    return added
