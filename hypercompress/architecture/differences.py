"""What of a student's network is not as timm builds it, so that loading it by its name would give another network."""

from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from hypercompress.alone import drawing
from hypercompress.architecture import Architecture, build


def differences(model: nn.Module, architecture: Architecture, replaced: Collection[str]) -> list[str]:
    """Names of the modules and tensors in which the network that timm builds differs.

    Compared are shapes, classes and `settings`; hooks, functions, and buffers that are not saved, are not.

    Args:
        replaced: paths of what was factored or unpacked, and may differ.
    """
    with drawing(), torch.device("meta"):
        built = build(architecture)
    changed = {id(model.get_submodule(name)) for name in replaced}
    everywhere = model.named_modules(remove_duplicate=False)
    below = tuple(f"{name}." for name, module in everywhere if id(module) in changed)
    ours, theirs = (_parts(network, below) for network in (model, built))
    other = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
    return [name or type(model).__name__ for name in other]


def _parts(network: nn.Module, without: tuple[str, ...]) -> dict[str, Any]:
    """What is compared, by dotted path."""
    found: dict[str, Any] = {name: tensor.shape for name, tensor in network.state_dict().items()}
    found |= {name: (type(module), settings(module)) for name, module in network.named_modules()}
    return {name: what for name, what in found.items() if not f"{name}.".startswith(without)}


def settings(module: nn.Module) -> dict[str, Any]:
    """The numbers and texts among a module's public attributes; flags say how a module computes more than what."""
    return {name: value for name, value in vars(module).items() if not name.startswith("_") and _plain(value)}


def _plain(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return all(map(_plain, value))
    return isinstance(value, (int, float, str)) and not isinstance(value, bool)
