"""Copies of modules that depend on nothing that the original did before, or that was done to it."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hypercompress.errors import ModelError
from hypercompress.running.calling import out_of_memory, switching
from hypercompress.running.closures import require_own
from hypercompress.running.nested import flat

Model = TypeVar("Model", bound=nn.Module)

WRAPPED = "_orig_mod"  # where a compiled module keeps the one that it was made of
PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)  # which keep theirs as ``module``


def weights_of(model: nn.Module) -> list[Tensor]:
    """All that a model learns or keeps: its parameters and buffers."""
    return [*model.parameters(), *model.buffers()]


def copy_of(model: Model, shared: Iterable[Tensor] = ()) -> Model:
    """A deep copy without what the model keeps from an earlier evaluation pass.

    Args:
        shared: tensors of the model that are not copied: both have them.

    LeViT, EfficientFormer and TinyViT keep biases that they computed in evaluation mode, and drop them on ``train()``:
    they hang on an autograd graph, which cannot be copied, and would be stale in a model with other weights. Other
    tensors of a graph, such as activations that a model keeps for its user, are copied without it.

    Raises:
        ModelError: something in the model cannot be copied, or a function in it would still hold a module of the model.
    """
    left = (value for module in model.modules() for value in flat(list(vars(module).values())))
    known = {id(value): value.detach().clone() for value in left if isinstance(value, Tensor) and not value.is_leaf}
    known |= {id(tensor): tensor for tensor in shared}
    try:
        with torch.no_grad():  # where torch.jit clones: else on a graph, and gradients would flow into the model
            copied = copy.deepcopy(model, dict(known))
    except Exception as error:
        if out_of_memory(error):
            raise
        what = f"{type(model).__name__}{_stuck(model, known)}"
        raise ModelError(
            f"received a {what} that cannot be copied ({error}); expected a model that copy.deepcopy takes; take out "
            "what need not be in it, or give its class a __deepcopy__"
        ) from error
    require_own(model, copied)
    _learn_as(model, copied)
    # Of the copy, not of the model, which stays as it is.
    with switching(copied):
        pass
    return copied


def _learn_as(model: nn.Module, copied: nn.Module) -> None:
    """Let the parameters of scripted parts learn where the model's do: without a graph none of their copies does."""
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            for old, new in zip(module.parameters(), copied.get_submodule(name).parameters(), strict=True):
                new.requires_grad_(old.requires_grad)


def _stuck(model: nn.Module, known: Mapping[int, Tensor]) -> str:
    """Which attribute of which module cannot be copied, of those that no module's own copying hides."""
    others = {id(module): module for module in model.modules()}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            try:
                copy.deepcopy(value, {**known, **others})
            except Exception:  # noqa: BLE001  (any that says that it cannot)
                return f" with {'.'.join(filter(None, (path, name)))} ({type(value).__name__})"
    return ""


def require_module(model: Any, role: str = "the model") -> None:
    """Raises ModelError for a name, a class or anything else that is no model; ``role``: what it was given as."""
    if isinstance(model, nn.Module):
        return
    what = repr(model) if isinstance(model, str) else f"the class {model.__name__}" if isinstance(model, type) else None
    raise ModelError(
        f"received {what or f'a {type(model).__name__}'} as {role}; expected an nn.Module; build it first, such as "
        "with timm.create_model('resnet18', pretrained=True)"
    )


def require_shapes(model: nn.Module) -> None:
    """Raises ModelError for a lazy layer of torch, whose parameters get a shape from the first batch."""
    lazy = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if is_lazy(tensor)]
    if lazy:
        raise ModelError(
            f"received a model whose {lazy[0]} has no shape yet (a lazy layer of torch); expected one that has run; "
            "run one batch through the model first"
        )


def as_written(model: nn.Module) -> nn.Module:
    """The model without `torch.compile`, whose graphs do not run the hooks and the layers that are put into a model,
    and out of what spreads it over devices (`PARALLEL`), as which nobody would build or load it again.

    Returns:
        the model itself, or the one that is spread, if nothing of it is compiled; else one with the same parameters and
        buffers.

    Raises:
        ModelError: no model at all, a scripted or traced one, one with a scripted part that shares a weight or buffer
            with the rest, one without parameters, or parameters that hold no values, have no shape yet or were made in
            inference mode.
    """
    require_module(model)
    model = _in_one_place(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(
            "received a model of torch.jit, whose layers are no Python modules; expected an nn.Module; pass the model "
            "that was scripted or traced"
        )
    parameters = list(model.parameters())
    if not parameters:
        raise ModelError(
            f"received a {type(model).__name__} without parameters; expected a model with some; pass the model as it "
            "was before it was quantized or its weights were taken out"
        )
    require_shapes(model)
    if any(parameter.is_meta for parameter in parameters):
        raise ModelError(
            "received a model on the meta device, whose parameters hold no values; expected one on a CPU or GPU; load "
            "its weights first"
        )
    named = (*model.named_parameters(), *model.named_buffers())
    made = [name for name, tensor in named if tensor.is_inference()]
    if made:
        raise ModelError(
            f"received a model whose {made[0]} was made in torch.inference_mode, so that autograd cannot use it; "
            "expected ordinary parameters and buffers; build or load the model outside of it"
        )
    if shared := _scripted_share(model):
        raise ModelError(
            f"received a model whose {shared} is a part of torch.jit that shares a weight or buffer with others, which "
            "its copy would not; expected tensors that can be copied together; pass that part as it was before it was "
            "scripted"
        )
    if not any(_compiled(module) for module in model.modules()):
        return model
    copied = copy_of(model, shared=weights_of(model))  # a copy of a module that was compiled in place is not compiled
    for module in list(copied.modules()):
        for name, child in module._modules.items():
            module._modules[name] = _unwrapped(child)
    whole: nn.Module = _unwrapped(copied)
    return whole


def _in_one_place(model: nn.Module) -> nn.Module:
    """What is spread over devices, compiled before it was or not, or after."""
    while isinstance(spread := _unwrapped(model), PARALLEL):
        model = spread.module
    return model


def _scripted_share(model: nn.Module) -> str:
    """The first scripted part that holds a parameter or buffer of another module, too; empty if none does."""
    scripted = [(name, m) for name, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)]
    others = [m for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    own = (t for m in others for t in (*m.parameters(recurse=False), *m.buffers(recurse=False))) if scripted else ()
    owned = set(map(id, own))
    return next((name for name, m in scripted if any(id(t) in owned for t in weights_of(m))), "")


def _unwrapped(module: Any) -> Any:
    """What `torch.compile` was given, if it made this; a place may hold ``None``."""
    return getattr(module, WRAPPED, module)


def _compiled(module: nn.Module) -> bool:
    """By `torch.compile(module)` or `module.compile()`."""
    return hasattr(module, WRAPPED) or getattr(module, "_compiled_call_impl", None) is not None
