"""How many images pass through a backbone, forwards and backwards: counted, not typed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from benchmarks.few_shot.backbones import features_of


@dataclass
class Passes:
    """Images so far.

    Args:
        forward: through the last layer of the backbone.
        backward: gradients that came back to it, so that something before it can learn.
        running: false while something is looked at that is no part of the method.
    """

    forward: int = 0
    backward: int = 0
    running: bool = True

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing inside the block."""
        self.running = False
        try:
            yield
        finally:
            self.running = True


@contextmanager
def counting(model: nn.Module, last: str) -> Iterator[Passes]:
    """Count inside the block, in copies that are made there too.

    Args:
        last: dotted path of that module, see `last_layer`.
    """
    passes = Passes()

    def backward(gradient: Tensor) -> None:
        passes.backward += len(gradient) * passes.running

    def forward(_: nn.Module, __: Any, output: Tensor) -> None:  # a function, not a method: deep copies share it
        passes.forward += len(output) * passes.running
        if output.requires_grad:
            output.register_hook(backward)

    handle = model.get_submodule(last).register_forward_hook(forward)
    try:
        yield passes
    finally:
        handle.remove()


def last_layer(model: nn.Module, example: Float[Tensor, "n c h w"]) -> str:
    """Dotted path of the last module with parameters of its own that the features go through, and go through once.

    Not of the pooling after it: timm makes that anew with a new classifier, and the count would be lost.

    Raises:
        ValueError: there is none.
    """
    names, handles = list[str](), []
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            handles.append(module.register_forward_hook(lambda *_, name=name: names.append(name)))
    with torch.no_grad():
        features_of(model, example)
    for handle in handles:
        handle.remove()
    once = [name for name in names if names.count(name) == 1]
    if not once:
        raise ValueError("received a model that runs no layer just once; expected a backbone of layers; take another")
    return once[-1]
