"""Whether a layer's twin would run: a model may hold a layer by a reference that no registered module is.

A plain Python list still points to the dense layer after the twin has taken its registered place: the student would
compute as before, and another thing after a reload. A closure points to the layer of the model that was copied.
"""

import copy
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hypercompress.errors import ModelError
from hypercompress.packed.unpacking import replace_module
from hypercompress.running.calling import ForwardFn, call_model, evaluating
from hypercompress.running.copying import copy_of, weights_of
from hypercompress.specs import ModelSpec

REASON = "the model runs it by a reference that is no registered module (a list?); register it"


@torch.no_grad()
def replaceable(model: nn.Module, spec: ModelSpec, example: Any, forward_fn: ForwardFn | None = None) -> ModelSpec:
    """The spec, in which a layer whose twin would not be called as often as itself is unsupported.

    Args:
        model: left as it was; a copy runs, of its structure only.
        example: the batch that ``spec`` was made with.

    Raises:
        ModelError: a copy of the model runs a layer of the model.
    """
    twins, calls, missed = copy_of(model, shared=weights_of(model)), Counter[str](), Counter[str]()

    def counted(by: Counter[str], name: str) -> Callable[..., None]:
        return lambda *_: by.update([name])

    for layer in spec.candidates:
        for path in layer.paths:
            dense = twins.get_submodule(path)
            twin = copy.copy(dense)
            twin._forward_hooks = OrderedDict()
            twin.register_forward_hook(counted(calls, layer.name))
            dense.register_forward_hook(counted(missed, layer.name))
            replace_module(twins, path, twin)
    with evaluating(twins):
        (forward_fn or call_model)(twins, example)
    elsewhere = [layer for layer in spec.candidates if calls[layer.name] + missed[layer.name] != layer.calls]
    if elsewhere:
        raise ModelError(
            f"received a model whose copy does not run its own {elsewhere[0].name} (a closure over the original's?); "
            "expected one that can be copied; let its forward reach its layers through self"
        )
    return spec.without({layer.name for layer in spec.candidates if calls[layer.name] != layer.calls}, REASON)
