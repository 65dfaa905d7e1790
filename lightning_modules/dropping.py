"""Steps that drop nothing: a teacher in evaluation mode drops nothing, and what a student drops hides how near it is.

Dropout, stochastic depth and their kin are for fitting labels. timm's constructors have some by default (Swin, FocalNet
and TinyViT a tenth of the paths; GhostNet and SENet a fifth of the features), whether the weights learnt so or not.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

BARE = ("p", "prob")  # what a layer that only drops may call its rate


@contextmanager
def dropping_nothing(model: nn.Module, if_so: bool = True) -> Iterator[None]:
    """Every rate of `rates_of` is 0 in the block, and what it was afterwards; modes stay as they are. The backward pass
    needs it, too: where activations are computed anew there, they have to be the same.

    Evaluation mode would not do: some networks keep tables for it that training would leave behind.
    """
    rates = rates_of(model) if if_so else []
    try:
        for module, name, _ in rates:
            setattr(module, name, 0.0)
        yield
    finally:
        for module, name, rate in rates:
            setattr(module, name, rate)


def rates_of(model: nn.Module) -> list[tuple[nn.Module, str, float]]:
    """The rates above 0 at which a model drops in training mode: real numbers that a module calls after dropping
    (``drop_rate``, ``attn_drop_p``, of recurrent layers ``dropout``), and in layers that only drop, ``p`` or ``prob``.

    Returns:
        each with its module and its name there; a module under several names once.
    """
    return [
        (module, name, value)
        for module in model.modules()
        for name, value in vars(module).items()
        if isinstance(value, float) and 0 < value <= 1 and ("drop" in name or (name in BARE and _only_drops(module)))
    ]


def _only_drops(module: nn.Module) -> bool:
    kind = type(module).__name__.lower()
    return isinstance(module, _DropoutNd) or "drop" in kind or kind == "stochasticdepth"  # torchvision's
