"""An input that is taken for labels is warned of."""

import warnings

import pytest
import torch
from torch import Tensor, nn

from hypercompress import Budget, compress


class Helped(nn.Module):
    """An image, and numbers that it can do without."""

    def __init__(self) -> None:
        super().__init__()
        self.images, self.extra = nn.Linear(12, 5), nn.Linear(10, 5)

    def forward(self, x: Tensor, meta: Tensor | None = None) -> Tensor:
        found: Tensor = self.images(x)
        return found if meta is None else found + 5 * self.extra(meta)


class Labelled(Helped):
    """As segmentation networks of transformers do, whose outputs are smaller than their labels."""

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> Tensor:
        return super().forward(pixels, labels)


class Flagged(Helped):
    """Its second argument is no tensor."""

    def forward(self, x: Tensor, features: bool = False) -> Tensor:  # type: ignore[override]
        return x if features else self.images(x)


def pairs(width: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 12, generator=generator), torch.rand(8, width, generator=generator)) for _ in range(8)]


def test_a_second_input_that_is_not_passed_is_warned_of() -> None:
    with pytest.warns(
        UserWarning, match=r"tensors \[8, 12\] and \[8, 10\] .* takes 'meta'.*forward_fn=lambda model"
    ) as told:
        compress(Helped(), Budget(params=0.9), data=pairs(10))
    assert told[0].filename == __file__


@pytest.mark.parametrize("model", [Helped(), Flagged(), Labelled()])
def test_targets_and_passed_inputs_are_not(model: nn.Module) -> None:
    budget = Budget(params=0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compress(model, budget, data=pairs(5))
        compress(model, budget, data=[images for images, _ in pairs(5)])
        compress(model, budget, data=[(images, torch.arange(8) % 5) for images, _ in pairs(5)])
        compress(model, budget, data=[(images, extra.softmax(1)) for images, extra in pairs(10)])
        if isinstance(model, (Flagged, Labelled)):
            compress(model, budget, data=pairs(10))
        else:
            compress(model, budget, data=pairs(10), forward_fn=lambda network, batch: network(*batch))
