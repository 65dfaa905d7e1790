"""Layers of a model that hold several in one, found, unpacked and packed again: attention layers (`attention.py`) and
fused projections (`projection.py`).
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from hypercompress.kinds import kind_of
from hypercompress.packed.attention import SEPARATE, UnpackedAttention
from hypercompress.packed.projection import NAME, SplitProjection
from hypercompress.running.copying import copy_of, weights_of
from hypercompress.running.memory import overlapping

Unpacked = UnpackedAttention | SplitProjection

LINEARS = (nn.Linear, NonDynamicallyQuantizableLinear)  # torch's out_proj is of the second class, and may be replaced
VECTORS = {"in_proj_bias", "bias_k", "bias_v"}
NESTED = "_nested_when_packed"  # where an encoder with unpacked layers keeps what its ``use_nested_tensor`` was


def unpackable(model: nn.Module) -> list[str]:
    """Dotted paths of the layers that can be unpacked, if the model does not mind (`unpackable.py`)."""
    held = holders(model)
    modules = dict(model.named_modules())
    packed = {name: module for name, module in modules.items() if isinstance(module, nn.MultiheadAttention)}
    names = [name for name, module in packed.items() if not why_packed(name, module, held)]
    return names + [name for name, module in modules.items() if divisible(name, module, held)]


def unpack(model: nn.Module, names: Sequence[str] | None = None) -> nn.Module:
    """The model with the layers at these paths (``None``: every layer that can be) unpacked, to be read and not written
    into: modules of its own, and the model's own parameters and buffers, views of them in fused projections, and copies
    in unpacked attention layers. The model itself if there is none.

    It computes the same to rounding, except what an encoder's fused kernels leave at padding (`unpack_layers`).
    """
    names = unpackable(model) if names is None else names
    if not names:
        return model
    copied = copy_of(model, shared=weights_of(model))
    unpack_layers(copied, names, copies=False)
    return copied


def unpack_layers(model: nn.Module, names: Iterable[str], *, copies: bool = True) -> None:
    """Unpack the layers at these dotted paths, in place. What is unpacked already stays.

    Args:
        copies: of fused projections take copies of the weights; else views of them, for a model that is read only.

    Raises:
        AttributeError: there is no such path. TypeError: nothing is there that can be unpacked.
    """
    held = holders(model)
    for name in names:
        module = model.get_submodule(name)
        if isinstance(module, Unpacked):
            continue
        if divisible(name, module, held):
            assert isinstance(module, nn.Linear)
            split = SplitProjection(module, copies=copies)
            replace_module(model, name, split)
            split.switch(_holder(model, name))
            continue
        if not isinstance(module, nn.MultiheadAttention):
            raise TypeError(
                f"received {type(module).__name__} at {name}; expected nn.MultiheadAttention or a fused projection"
            )
        if reason := why_packed(name, module, held):
            raise TypeError(
                f"received nn.MultiheadAttention at {name}; expected one that can be unpacked, but {reason}"
            )
        replace_module(model, name, UnpackedAttention(module))
    # In evaluation an encoder makes a padded batch a nested tensor, for the fused kernel, which leaves zeros at the
    # padding. Its layers no longer run fused: they get the batch as it is, as they do in training.
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and unpacked_layers(module, UnpackedAttention):
            vars(module).setdefault(NESTED, getattr(module, "use_nested_tensor", False))
            module.use_nested_tensor = False


def divisible(name: str, module: nn.Module, held: Mapping[int, Sequence[str]]) -> bool:
    """Whether this is a fused projection that may be taken apart: a plain linear layer with timm's name for it."""
    if name.rpartition(".")[2] != NAME or not name or type(module) is not nn.Linear or module.out_features % 3:
        return False
    weight = module._parameters.get("weight")
    whole = not changed(module) and not added(module)
    return whole and weight is not None and all(held[id(parameter)] == [name] for parameter in module.parameters())


def changed(module: nn.Module) -> bool:
    """Whether it has hooks or a forward of its own, which a module in its place would not have."""
    return any(key.endswith("forward") or (key.endswith("_hooks") and value) for key, value in vars(module).items())


def added(module: nn.Module) -> list[str]:
    """Names of the parameters, buffers and modules that a layer holds besides those that its kind stands in for, and a
    bias that is no parameter, as the twin's is.
    """
    kind = kind_of(module)
    parts = None if kind is None else kind.parts
    if parts is None:
        return []
    loose = getattr(module, "bias", None) is not None and module._parameters.get("bias") is None
    return [
        *sorted({*module._parameters, *module._buffers, *module._modules} - parts),
        *(["a bias that is no parameter"] if loose else []),
    ]


def pack_layers(model: nn.Module, kind: type[nn.Module] | None = None) -> None:
    """Pack every unpacked layer (of one ``kind``) again whose parts are plain linear layers, in place."""
    for name, module in unpacked_layers(model, kind).items():
        if all(type(layer) is nn.Linear for layer in module.children()):
            replace_module(model, name, module.pack())
            if isinstance(module, SplitProjection):
                module.switch_back(_holder(model, name))
    for encoder in model.modules():
        if NESTED in vars(encoder) and not unpacked_layers(encoder, UnpackedAttention):
            encoder.use_nested_tensor = vars(encoder).pop(NESTED)


def _holder(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` at a dotted path, and wherever else the module is that stands there."""
    old = model.get_submodule(name)
    for parent in list(model.modules()):
        for leaf in [leaf for leaf, child in parent._modules.items() if child is old]:
            setattr(parent, leaf, module)


def unpacked_layers(model: nn.Module, kind: type[nn.Module] | None = None) -> dict[str, Unpacked]:
    """The unpacked layers of a model (of one ``kind``) by dotted path."""
    found = {name: module for name, module in model.named_modules() if isinstance(module, Unpacked)}
    return {name: module for name, module in found.items() if kind is None or isinstance(module, kind)}


def holders(model: nn.Module) -> dict[int, list[str]]:
    """Id of each parameter -> the dotted paths of the modules that hold its memory or part of it, of each its first."""
    groups, found = overlapping(model.parameters()), defaultdict[int, list[str]](list)
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if name not in found[groups[id(parameter)]]:
                found[groups[id(parameter)]].append(name)
    return {parameter: found[group] for parameter, group in groups.items()}


def why_packed(name: str, module: nn.MultiheadAttention, held: Mapping[int, Sequence[str]]) -> str:
    """Why an attention layer has to stay as it is; empty if it can be unpacked.

    Args:
        name: dotted path in its model.
        held: the `holders` of that model.
    """
    if not name:
        return "it is the whole model"
    if kind_of(module) is not None:
        return "a kind is registered for it"
    out = module.out_proj
    if type(module) is not nn.MultiheadAttention or type(out) not in LINEARS:
        other = module if type(out) in LINEARS else out
        return f"a {type(other).__name__} may compute anything"
    if changed(module) or changed(out):
        return "it has hooks or a forward of its own"
    weights = {key for key, parameter in module._parameters.items() if parameter is not None} - VECTORS
    inside = {*module._modules, *module._buffers, *out._modules, *out._buffers}
    usual = weights in ({"in_proj_weight"}, {*SEPARATE}) and {*out._parameters} == {"weight", "bias"}
    if inside != {"out_proj"} or not usual:
        return "it holds other parameters or modules than torch gives it"
    owners = {owner for parameter in module.parameters() for owner in held[id(parameter)]}
    shared = sorted(owners - {name, f"{name}.out_proj"})
    return f"it shares a parameter with {', '.join(owner or 'the model itself' for owner in shared)}" if shared else ""
