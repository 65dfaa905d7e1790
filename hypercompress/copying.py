"""Copies of modules that depend on nothing that the original did before."""

import copy
from collections.abc import Iterable
from typing import TypeVar

from torch import Tensor, nn

Model = TypeVar("Model", bound=nn.Module)


def weights_of(model: nn.Module) -> list[Tensor]:
    """All that a model learns or keeps: its parameters and buffers."""
    return [*model.parameters(), *model.buffers()]


def copy_of(model: Model, shared: Iterable[Tensor] = ()) -> Model:
    """A deep copy without what the model keeps from an earlier evaluation pass.

    Args:
        shared: tensors of the model that are not copied: both have them.

    LeViT, EfficientFormer and TinyViT keep biases that they computed in evaluation mode, and drop them on ``train()``:
    they hang on an autograd graph, which cannot be copied, and would be stale in a model with other weights.
    """
    flags = [module.training for module in model.modules()]
    model.train()
    try:
        copied = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    finally:
        for module, training in zip(model.modules(), flags, strict=True):
            module.training = training
    for module, training in zip(copied.modules(), flags, strict=True):
        module.training = training
    return copied
