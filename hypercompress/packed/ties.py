"""Layers that hold one weight: when one pair of factors can serve them all, and how their twins come to share it.

The layers of such a group multiply by one matrix, each with its own input and its own bias. So they are one layer with
several places: what a rank costs and what its directions carry are sums over all places, and the factors stand in for
the matrix at each of them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from hypercompress.kinds import kind_of
from hypercompress.specs import Status


@dataclass(frozen=True)
class Sharing:
    """Which layers of a model are one.

    Args:
        modules: by dotted path. One under several names is one layer that is called several times, and has the first.
        held: the paths that hold each parameter, by its id (`unpacking.holders`).
        order: place of each path in a forward pass; what was never called is absent.
        alone: what becomes of the module at a path if it shares nothing, and the reason if it cannot be factored.
    """

    modules: Mapping[str, nn.Module]
    held: Mapping[int, Sequence[str]]
    order: Mapping[str, int]
    alone: Callable[[str], tuple[Status, str]]

    def judge(self, name: str) -> tuple[Status, str, tuple[str, ...]]:
        """Whether a layer may be factored; the reason if not; the paths of all that is one layer with it, in the order
        of their first calls. Of several, the first stands for all.
        """
        status, reason = self.alone(name)
        matrices = [p for p in self.modules[name].parameters(recurse=False) if p.ndim > 1]
        others = [path for p in matrices for path in self.held[id(p)] if path != name]
        bound = self._bound((name, *others))
        if not others:
            return (Status.TIED, bound, (name,)) if bound and status is Status.FACTORED else (status, reason, (name,))
        apart = [why_apart(self.modules[name], other, self.modules[other]) for other in others]
        apart += [reason, bound, *(f"{other}: {why}" for other in others if (why := self.alone(other)[1]))]
        if any(apart):
            why = next(filter(None, apart))
            return Status.TIED, f"{why}; shares its weight with {', '.join(others)}", (name,)
        paths = tuple(sorted((name, *others), key=self.order.__getitem__))
        if paths[0] != name:
            return Status.TIED, f"shares its weight with {paths[0]}, and whatever becomes of it", paths
        return status, reason, paths

    def _bound(self, paths: Sequence[str]) -> str:
        """Who else holds a bias of these layers: their twins have biases of their own. Empty if nobody does."""
        biases = [bias for path in paths if (bias := self.modules[path]._parameters.get("bias")) is not None]
        others = dict.fromkeys(path for bias in biases for path in self.held[id(bias)] if path not in paths)
        return f"its bias is held by {', '.join(path or 'the model itself' for path in others)}, too" if others else ""

    def parameters(self, paths: Iterable[str]) -> set[int]:
        """Ids of the parameters that these modules own."""
        return {id(p) for path in paths for p in self.modules[path].parameters(recurse=False)}


def why_apart(module: nn.Module, name: str, other: nn.Module) -> str:
    """Why two layers that share memory cannot share factors; empty if they can.

    Args:
        name: dotted path of the other.
    """
    if type(other) is not type(module):
        return f"{name} is of another class ({type(other).__name__})"
    if other._parameters.get("weight") is not module._parameters.get("weight"):
        return f"{name} holds it as another parameter (a view, or frozen apart)"
    if {key for m in (module, other) for key, p in m._parameters.items() if p is not None} - {"weight", "bias"}:
        return f"{name} has parameters besides weight and bias"
    kind = kind_of(module)
    if kind is not None and not torch.equal(kind.matrix(module), kind.matrix(other)):
        return f"{name} makes another matrix of it"
    return ""


class Ties:
    """Makes the twins of layers that share parameters share theirs, one twin after another.

    A twin is whatever takes a layer's place: its low-rank form, or the dense form of that. Twins of different forms
    share nothing.
    """

    def __init__(self) -> None:
        # The layers' own parameters are kept too: as long as they live, an id means one of them.
        self._known: dict[tuple[object, ...], tuple[list[nn.Parameter], dict[str, nn.Parameter]]] = {}

    def carry(self, old: nn.Module, twin: nn.Module) -> nn.Module:
        """``twin``, with the parameters of the first twin of a layer that shares the weight of ``old``.

        Biases are shared where the layers share these too.
        """
        before, made = list(old.parameters()), dict(twin.named_parameters())
        matrices = [p for p in before if p.ndim > 1]
        for sources, names in (
            (matrices, [name for name, p in made.items() if p.ndim > 1]),
            (before, [name for name, p in made.items() if p.ndim == 1]),
        ):
            if not sources:
                continue
            form = tuple((name, made[name].shape) for name in names)
            key = (*map(id, sources), form)
            _, first = self._known.setdefault(key, (sources, {name: made[name] for name in names}))
            for name, parameter in first.items():
                path, _, leaf = name.rpartition(".")
                setattr(twin.get_submodule(path), leaf, parameter)
        return twin
