"""Which packed layers a model can be given unpacked: those with which it computes what it did.

An unpacked layer has the arguments, the results and most attributes of the packed one, but is of another class. A model
that asks for ``isinstance(self.attention, nn.MultiheadAttention)``, or passes ``*self.qkv.parameters()`` to a function,
computes another thing with it, or fails.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hypercompress.packed.trials import alike, fitting, passed, tried
from hypercompress.packed.unpacking import unpack, unpackable
from hypercompress.running.calling import ForwardFn, taking
from hypercompress.specs import ModelSpec, Status

ANOTHER = (
    "nn.MultiheadAttention packs its projections into one parameter; the model fails or computes another thing when it "
    "is unpacked (does it ask for the class?)"
)


@dataclass(frozen=True)
class Apart:
    """A model with its packed layers unpacked, as far as it computes the same.

    Args:
        model: as of `unpacking.unpack`.
        packed: dotted paths of the layers that could be unpacked, and stay packed.
        output: what it gives for the example; ``None`` if nothing was unpacked.
    """

    model: nn.Module
    packed: frozenset[str] = frozenset()
    output: Tensor | None = None

    def told(self, spec: ModelSpec) -> ModelSpec:
        """The spec of the model, in which attention that stays packed says why. A projection is a layer by itself."""
        rows = (layer for layer in spec.layers if layer.name in self.packed and layer.status is Status.UNSUPPORTED)
        stuck = (row.name for row in rows if isinstance(self.model.get_submodule(row.name), nn.MultiheadAttention))
        return spec.without(set(stuck), ANOTHER)


def taken_apart(model: nn.Module, example: Any, forward_fn: ForwardFn | None = None) -> Apart:
    """Unpack as many layers as change nothing in what the model gives, in evaluation mode.

    Takes two passes of the example where all can be unpacked, none where there is nothing to unpack, and some for each
    layer that stays packed.

    Args:
        model: left as it was.
        example: a batch that it takes.

    Raises:
        ModelError: the model, as it is, does not take the example, or cannot be copied.
    """
    names = unpackable(model)
    found = Apart(model, frozenset(names))
    if not names:
        return found
    forward_fn = taking(forward_fn)
    before = passed(model, example, forward_fn)
    repeats: bool | None = None

    def same(some: Sequence[str]) -> bool:
        nonlocal found, repeats
        apart = unpack(model, some)
        output = tried(apart, example, forward_fn)
        if output is None:
            return False
        if not alike(output, before):
            # Where the model draws anew each time outputs say nothing.
            repeats = alike(passed(model, example, forward_fn), before) if repeats is None else repeats
            if repeats:
                return False
        found = Apart(apart, frozenset(names) - set(some), output)
        return True

    fitting(same, names)
    return found
