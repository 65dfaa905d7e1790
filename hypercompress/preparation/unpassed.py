"""What of a batch no model is passed, and may be meant to be."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from hypercompress.errors import warn
from hypercompress.packed.trials import passed
from hypercompress.running.batches import resized
from hypercompress.running.calling import call_model, taking


def warn_of_unpassed(model: nn.Module, batch: Any) -> None:
    """Of a tuple `call_model` passes the first item, and the second is read as labels or targets.

    Warns:
        of a second item of real numbers that are no probabilities and not in the outputs' shape, where ``forward``
        takes a second input that may be left out and is not called labels or targets: the model would be compressed
        without it.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) < 2 or not isinstance(batch[1], Tensor):
        return
    name, second = _second_input(model), batch[1]
    if name is None or "label" in name or "target" in name or not second.is_floating_point() or second.ndim < 2:
        return
    if second.ndim == 2 and bool((second >= 0).all()) and torch.allclose(second.sum(1), second.new_ones(()), atol=1e-3):
        return
    output = passed(model, resized(batch, 2), taking(call_model))
    if output.shape[1:] == second.shape[1:]:
        return
    warn(
        f"received batches of tensors {list(batch[0].shape)} and {list(second.shape)} for a model whose forward takes "
        f"{name!r}, too; expected labels or targets in the second place, as of a tuple the first item alone is passed; "
        "if it is an input, pass forward_fn=lambda model, batch: model(*batch), or batches that are dicts",
    )


def _second_input(model: nn.Module) -> str | None:
    """The name of the second argument of ``forward``, if it may be left out by being ``None``."""
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())[1:2]
    except (TypeError, ValueError):  # one that is compiled, say, has none
        return None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [each.name for each in parameters if each.kind in positional and each.default is None]
    return names[0] if names else None
