"""Read a model: every weight-bearing module, whether it may be factored, and what it costs.

One forward pass of an example batch under hooks answers everything that cannot be known from the
modules alone: which are called, in what order, at how many positions, which norm reads whose output,
and whose parameters are used by somebody else's ``forward`` (a factored layer would be bypassed there).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from hypercompress.errors import ModelError, NonFiniteError, listed
from hypercompress.kinds import LayerKind, kind_of, told
from hypercompress.packed.ties import Sharing
from hypercompress.packed.unpacking import added, changed, holders, why_packed
from hypercompress.running.calling import ForwardFn, call_model
from hypercompress.running.tracing import NORMS, Trace, trace_pass
from hypercompress.specs import UNCALLED, LayerSpec, ModelSpec, Status


def _judge(name: str, module: nn.Module, trace: Trace, held: Mapping[int, Sequence[str]]) -> tuple[Status, str]:
    """Whether a module may be factored, and the reason if not; what it shares aside."""
    kind = _real_kind_of(module)
    if kind is None:
        return _unknown(name, module, held)
    if reason := _bypassed(name, module, trace):
        return Status.UNSUPPORTED, reason
    if kind.spreads and (groups := getattr(module, "groups", 1)) > 1:
        name = "depthwise" if groups == module.in_channels else "grouped"
        return Status.KEPT, f"{name} convolution (groups={groups}), and transposed"
    return Status.FACTORED, ""


def _own(module: nn.Module) -> list[nn.Parameter]:
    """What is the module's, and of no layer inside: what its weight is computed of is its own."""
    inside = [p for _, made_of in _computed(module) for p in made_of.parameters()]
    return [*module.parameters(recurse=False), *inside]


def _computed(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Names of the tensors that the module computes in each pass (`torch.nn.utils.parametrize`), and what it does so
    with.
    """
    return list(module.get_submodule("parametrizations").named_children()) if is_parametrized(module) else []


def _real_kind_of(module: nn.Module) -> LayerKind | None:
    """Its kind, if that is known and what the module holds are real numbers."""
    return None if any(parameter.is_complex() for parameter in module.parameters(recurse=False)) else kind_of(module)


def _unknown(name: str, module: nn.Module, held: Mapping[int, Sequence[str]]) -> tuple[Status, str]:
    """Why a module of no known kind stays as it is."""
    if kind_of(module) is not None:
        return Status.UNSUPPORTED, "its weight is complex"
    if isinstance(module, NORMS):
        return Status.KEPT, "a normalisation has no matrix"
    if isinstance(module, nn.MultiheadAttention):
        why = why_packed(name, module, held) or "compress() unpacks it"
        return Status.UNSUPPORTED, f"nn.MultiheadAttention packs its projections into one parameter; {why}"
    if all(p.squeeze().ndim < 2 for p in _own(module)):
        return Status.KEPT, "vectors only, no matrix"
    if computed := " and ".join(name for name, _ in _computed(module)):
        return Status.UNSUPPORTED, (
            f"its {computed} is computed anew in each pass (weight norm, spectral norm), which "
            "torch.nn.utils.parametrize.remove_parametrizations undoes"
        )
    if isinstance(module, torch.jit.ScriptModule):
        return Status.UNSUPPORTED, "it is part of a scripted module (torch.jit), whose layers are no Python modules"
    return Status.UNSUPPORTED, f"no kind of layer is registered for {told(module)}"


def _bypassed(name: str, module: nn.Module, trace: Trace) -> str:
    """Why a low-rank form could not do all that this layer does; empty if it could."""
    if not name:
        return "it is the whole model, with no place to put another (wrap it in nn.Sequential)"
    if "weight" not in module._parameters:
        return (
            "its weight is computed anew in each pass (weight norm, spectral norm, pruning), which remove_weight_norm, "
            "remove_spectral_norm or prune.remove of torch.nn.utils undoes"
        )
    if changed(module):
        return "it has hooks or a forward of its own"
    if extra := added(module):
        return f"it also holds {', '.join(extra)}, which its low-rank form would not have"
    for part in module._parameters:
        if reader := trace.readers.get(f"{name}.{part}"):
            return f"its {part} is read directly by {reader}"
    if name not in trace.order:
        return UNCALLED
    if name in trace.instructed:
        return "it is called with more than one argument (an output size?); its twin takes one"
    if name in trace.transformed:
        return "it runs under torch.vmap or another transform of torch.func, where it does not see the batch"
    return ""


def _too_small(layer: LayerSpec) -> str:
    """Why a layer whose least factors are no smaller than itself stays dense."""
    if layer.groups == 1:
        return f"{layer.out} x {layer.d}: even rank 1 is no smaller than dense"
    if layer.channels == layer.groups:
        return f"depthwise convolution (groups={layer.groups})"
    return f"{layer.rows} x {layer.d} in each of {layer.groups} groups: even rank 1 is no smaller than dense"


def _follower(name: str, trace: Trace, sharing: Sharing) -> str | None:
    """The norm that can give back what truncation takes from layer ``name``: it has a shift to do it by, and what it
    holds is its own, and is read by nobody else.
    """
    norm = trace.follower(name)
    if norm is None:
        return None
    own = sharing.modules[norm]._parameters  # without what it computes anew in each pass
    if own.get("bias") is None or "weight" not in own or any(f"{norm}.{part}" in trace.readers for part in own):
        return None
    held = (sharing.held[id(parameter)] for parameter in sharing.modules[norm].parameters(recurse=False))
    return norm if all(paths == [norm] for paths in held) else None


def _layer(name: str, module: nn.Module, trace: Trace, sharing: Sharing) -> LayerSpec:
    alone = isinstance(module, torch.jit.ScriptModule)  # whatever shares a weight with it is of another class
    status, reason, paths = (*sharing.alone(name), (name,)) if alone else sharing.judge(name)
    counted = paths if paths[0] == name else ()  # of several that are one, all is counted with the first
    before = sharing.parameters(paths[: paths.index(name)])
    kind, own = _real_kind_of(module), sum(p.numel() for p in module.parameters(recurse=False) if id(p) not in before)
    bias = getattr(module, "bias", None)
    shape: dict[str, Any] = {"out": 0, "d": 0}
    if kind is not None:
        groups, (rows, d) = kind.groups(module), kind.matrix(module).shape[-2:]
        out = groups * rows
        folded = own - out * d - (bias.numel() if isinstance(bias, Tensor) else 0)
        shape = {"out": out, "d": d, "axis": kind.channel_axis, "folded": max(0, folded)}
        shape |= {"taps": kind.taps(module), "strided": kind.strided(module), "groups": groups}
    layer = LayerSpec(
        name=name,
        kind=type(module).__name__ if kind is None else kind.name,
        status=status,
        reason=reason,
        positions=sum(trace.positions[path] for path in counted),
        calls=sum(trace.calls[path] for path in counted),
        input_positions=sum(trace.inputs[path] for path in counted),
        source_positions=sum(trace.sources[path] for path in counted),
        shared=counted[1:],
        params=own,
        depth=trace.order.get(name, -1),
        bias=bias is not None,
        follower=_follower(name, trace, sharing),
        feeder=trace.feeders.get(name),
        **shape,
    )
    if status is Status.FACTORED and layer.max_rank == 0:
        return replace(layer, status=Status.KEPT, reason=_too_small(layer))
    return layer


def _gathered(rows: Mapping[str, LayerSpec], modules: Mapping[str, nn.Module]) -> list[LayerSpec]:
    """One row for a layer and all that computes its weight anew."""
    found = dict[str, LayerSpec]()
    for name, row in rows.items():  # a layer comes before what is in it
        layer = f".{name}".partition(".parametrizations.")[0].removeprefix(".")
        if layer in found and is_parametrized(modules[layer]):
            found[layer] = replace(found[layer], params=found[layer].params + row.params)
        else:
            found[name] = row
    return list(found.values())


def require_finite(model: nn.Module, advice: str = "check the checkpoint") -> None:
    """Raises NonFiniteError naming every parameter and buffer that holds NaN or infinity.

    Infinity in a buffer is a fault in a norm's moments only; elsewhere it may be meant (the bounds of a clamp).
    """
    moments = {id(buffer) for module in model.modules() if isinstance(module, NORMS) for buffer in module.buffers()}
    exact = {id(parameter) for parameter in model.parameters()} | moments
    tensors: Iterable[tuple[str, Tensor]] = (*model.named_parameters(), *model.named_buffers())
    bad = [
        name
        for name, tensor in tensors
        if tensor.layout is torch.strided  # torch asks nothing of some sparse ones
        and (tensor.is_floating_point() or tensor.is_complex())
        and (tensor.isnan() if id(tensor) not in exact else ~_checkable(tensor).isfinite()).any()
    ]
    if bad:
        raise NonFiniteError(f"received NaN or infinity in {listed(bad)}; expected finite weights; {advice}")


def _checkable(tensor: Tensor) -> Tensor:
    """The numbers in a type that torch can ask for infinity: of eight bits it can ask only some."""
    return tensor.float() if tensor.itemsize < 2 else tensor


def require_supported(model: nn.Module, spec: ModelSpec) -> None:
    """Raises ModelError naming every layer that is unsupported, and why.

    What a module with children holds itself is no layer's weight: a position embedding, a class token, a table of
    biases. Most transformers have such.
    """
    wrong = [
        f"{layer.name or 'the model itself'} ({layer.reason})"
        for layer in spec.layers
        if layer.status is Status.UNSUPPORTED and _childless(model.get_submodule(layer.name))
    ]
    if wrong:
        raise ModelError(
            f"received a model of which {len(wrong)} of {len(spec.layers)} layers are unsupported: {'; '.join(wrong)}; "
            "expected none, as strict says; register their kinds, or leave strict out and they stay dense"
        )


def _childless(module: nn.Module) -> bool:
    """Whether no layer is in it."""
    return not any(name != "parametrizations" or not _computed(module) for name, _ in module.named_children())


def inspect(model: nn.Module, example: Any, forward_fn: ForwardFn | None = None) -> ModelSpec:
    """Describe a model by one forward pass of ``example``.

    Args:
        model: any module; left as it was.
        example: one batch as the model takes it: tensor, tuple (the first item is passed) or dict.
        forward_fn: ``(model, batch) -> tensor`` for anything else.

    Returns:
        every module that owns parameters, each with a status and, if it may not be factored, the reason.

    Raises:
        ModelError: the model does not return one tensor. NonFiniteError: NaN or infinity in its weights.
    """
    require_finite(model)
    trace = trace_pass(model, example, forward_fn or call_model)
    held, modules = holders(model), dict(model.named_modules())
    sharing = Sharing(modules, held, trace.order, lambda name: _judge(name, modules[name], trace, held))
    rows = {
        name: _layer(name, module, trace, sharing)
        for name, module in modules.items()
        if is_parametrized(module) or any(True for _ in module.parameters(recurse=False))
    }
    layers = _gathered(rows, modules)
    layers.sort(key=lambda layer: (layer.depth < 0, layer.depth))
    size = tuple(example.shape[1:]) if isinstance(example, Tensor) else ()
    if isinstance(example, (tuple, list)) and example and isinstance(example[0], Tensor):
        size = tuple(example[0].shape[1:])
    params = sum(p.numel() for p in model.parameters())
    return ModelSpec(tuple(layers), params, trace.macs, tuple(int(s) for s in size))
