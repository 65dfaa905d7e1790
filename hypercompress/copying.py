"""Copies of modules that depend on nothing that the original did before."""

import copy
from typing import TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def copy_of(model: Model, *, weights: bool = True) -> Model:
    """A deep copy without what the model keeps from an earlier evaluation pass.

    Args:
        weights: copy parameters and buffers too; else both have the same.

    LeViT, EfficientFormer and TinyViT keep biases that they computed in evaluation mode, and drop them on ``train()``:
    they hang on an autograd graph, which cannot be copied, and would be stale in a model with other weights.
    """
    flags = [module.training for module in model.modules()]
    model.train()
    try:
        shared = [] if weights else [*model.parameters(), *model.buffers()]
        copied = copy.deepcopy(model, {id(tensor): tensor for tensor in shared})
    finally:
        for module, training in zip(model.modules(), flags, strict=True):
            module.training = training
    for module, training in zip(copied.modules(), flags, strict=True):
        module.training = training
    return copied
