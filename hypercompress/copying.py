"""Copies of modules that depend on nothing that the original did before."""

import copy
from typing import TypeVar

from torch import nn

Model = TypeVar("Model", bound=nn.Module)


def copy_of(model: Model) -> Model:
    """A deep copy without what the model keeps from an earlier evaluation pass.

    LeViT, EfficientFormer and TinyViT keep biases that they computed in evaluation mode, and drop them on ``train()``:
    they hang on an autograd graph, which cannot be copied, and would be stale in a model with other weights.
    """
    flags = [module.training for module in model.modules()]
    model.train()
    try:
        copied = copy.deepcopy(model)
    finally:
        for module, training in zip(model.modules(), flags, strict=True):
            module.training = training
    for module, training in zip(copied.modules(), flags, strict=True):
        module.training = training
    return copied
