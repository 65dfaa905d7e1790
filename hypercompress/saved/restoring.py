"""A network as it was before it was compressed (a skeleton) takes the form that was saved, for weights to be loaded."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hypercompress.errors import ArtefactError, listed, warn
from hypercompress.kinds import LowRank, frozen_as, low_rank_layers, low_rank_like
from hypercompress.packed.ties import Ties
from hypercompress.packed.unpacking import replace_module, unpack_layers
from hypercompress.running.calling import out_of_memory
from hypercompress.running.copying import as_written, copy_of, require_module, require_shapes
from hypercompress.saved.artefact import Saved
from hypercompress.saved.configuration import require_geometry


def copy_of_skeleton(skeleton: Any) -> nn.Module:
    """A copy of what the user built, in evaluation mode, and without `torch.compile`.

    Raises:
        ModelError: it is no module, was scripted, or its parameters hold no values or have no shape yet.
    """
    require_module(skeleton, "the skeleton")
    require_shapes(skeleton)  # some that have none cannot be copied either
    model: nn.Module = copy_of(skeleton)
    model.eval()  # a train() of the user's own may return nothing
    # One without parameters lacks layers, which are named when they are to be factored.
    return as_written(model) if list(model.parameters()) else model


def restore_layers(
    model: nn.Module, unpacked: Iterable[str], ranks: Mapping[str, int], inner: Mapping[str, int]
) -> None:
    """Unpack and factor the layers of a network that were so when it was saved, in place.

    What is frozen stays frozen, as in `student.build_student`. A layer that has these ranks already stays: in a
    skeleton that holds a student.

    Args:
        model: of the skeleton, or built by timm.
        unpacked: dotted paths.
        ranks, inner: ranks and input ranks by dotted path.

    Raises:
        ArtefactError: another layer stands there.
    """
    try:
        unpack_layers(model, unpacked)
    except (AttributeError, TypeError) as error:
        raise ArtefactError(
            f"received a plan that unpacks layers ({error}); expected plain ones there; check the skeleton"
        ) from error
    ties = Ties()
    for name, rank in ranks.items():
        try:
            dense = model.get_submodule(name)
            if isinstance(dense, LowRank):
                _require_ranks(name, dense, rank, inner.get(name))
            else:
                layer = frozen_as(low_rank_like(dense, rank, inner.get(name)), dense)
                replace_module(model, name, ties.carry(dense, layer))
        except (AttributeError, TypeError) as error:
            raise ArtefactError(
                f"received a plan that factors {name}; expected a layer of a known kind there; check the skeleton, and "
                "register a kind of your own before loading"
            ) from error


def _require_ranks(name: str, layer: LowRank, rank: int, inner: int | None) -> None:
    """Raises ArtefactError if a layer that the skeleton has factored already is factored otherwise."""
    if (layer.rank, layer.input_rank) != (rank, inner):
        raise ArtefactError(
            f"received a skeleton that is a student itself, with {name} at {_said(layer.rank, layer.input_rank)}; "
            f"expected the network before it was compressed, or {_said(rank, inner)} there; pass that network, such as "
            "student.to_dense()"
        )


def _said(rank: int, inner: int | None) -> str:
    return f"rank {rank}" if inner is None else f"rank {rank} and input rank {inner}"


def require_factors(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Every factor of a network is in the state that is to be saved.

    Raises:
        ArtefactError: some are left out: no skeleton brings them back.

    Warns:
        of all else that is left out, which the skeleton must bring.
    """
    if lost := _factored_without(model, state):
        raise ArtefactError(
            f"received a network whose state_dict leaves out {listed(lost)}, which {'is' if len(lost) == 1 else 'are'} "
            "factored; expected all factors in it, as no skeleton brings them back; let state_dict give them, or "
            "compress with that part left out of the model"
        )
    if kept := _left_out(model, state):
        warn(
            f"received a network whose state_dict leaves out {listed(kept)}; expected all of it; that is not saved: "
            "from_pretrained(folder, skeleton) takes it from the skeleton",
        )


def load_state(model: nn.Module, saved: Saved, folder: Path) -> None:
    """Strict load; every key and shape that does not fit is listed at once. What the network's own ``state_dict``
    leaves out, such as a frozen backbone, was not saved, and stays as it is.

    Raises:
        ArtefactError: something does not fit, or the factors of a layer were not saved.
    """
    require_geometry(model, saved.config, folder)
    state = model.state_dict()  # it carries the versions that some modules ask for (MNASNet)
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    got = {name: tuple(tensor.shape) for name, tensor in saved.state.items()}
    faults = [f"missing {name}" for name in expected.keys() - got.keys()]
    faults += [f"unexpected {name}" for name in got.keys() - expected.keys()]
    faults += [f"{n} is {got[n]} not {expected[n]}" for n in expected.keys() & got.keys() if expected[n] != got[n]]
    faults += [f"missing factors of {name}" for name in _factored_without(model, state)]
    if not faults:
        state.update(saved.state)
        faults = _load(model, state)
    if faults:
        raise ArtefactError(
            f"received {folder} whose weights do not fit its network: {'; '.join(sorted(faults))}; expected the "
            "network that was saved; check the skeleton and the timm version"
        )


def _load(model: nn.Module, state: Mapping[str, Any]) -> list[str]:
    """Load what the network's ``state_dict`` gives, and say what its ``load_state_dict`` has against it."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            # An expanded one has many numbers in one place, where torch writes none.
            if buffer is not None and any(size > 1 and not by for size, by in _steps(buffer)):
                module._buffers[name] = buffer.clone(memory_format=torch.contiguous_format)
    try:
        found: Any = model.load_state_dict(state, strict=False)  # one of the user's own may return nothing
    except Exception as error:
        if out_of_memory(error):
            raise
        return [" ".join(str(error).split())]
    missing = state.keys() & getattr(found, "missing_keys", ())
    return [f"missing {name}" for name in missing] + [f"unexpected {n}" for n in getattr(found, "unexpected_keys", ())]


def _steps(tensor: Tensor) -> Iterable[tuple[int, int]]:
    """The size of each axis, and how far a step along it goes in memory."""
    return zip(tensor.shape, tensor.stride(), strict=True) if tensor.layout is torch.strided else ()


def _factored_without(model: nn.Module, state: Mapping[str, Any]) -> list[str]:
    """Dotted paths of the factored layers of which a parameter is not in the state."""
    lost = set(_left_out(model, state))
    layers = low_rank_layers(model).items()
    return [path for path, layer in layers if lost.intersection(f"{path}.{n}" for n, _ in layer.named_parameters())]


def _left_out(model: nn.Module, state: Mapping[str, Any]) -> list[str]:
    """Names of parameters that are in the state neither by their name nor, under another, as the same memory or as a
    copy. A tensor is the copy of one parameter.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    if named.keys() <= state.keys():
        return []
    tensors = {name: t for name, t in state.items() if isinstance(t, Tensor) and t.layout is torch.strided}
    places = {tensor.data_ptr() for tensor in tensors.values() if tensor.numel()}
    ours = {name: t for name, t in _all_named(model) if t.layout is torch.strided}
    here = {tensor.data_ptr() for tensor in ours.values() if tensor.numel()}
    spare = [t for name, t in tensors.items() if t.data_ptr() not in here and not _copied(ours.get(name), t)]
    found = {id(p) for name, p in named.items() if name in state or (name in ours and p.data_ptr() in places)}
    # Of equal ones those of factored layers come first, which no skeleton brings back.
    factors = {id(p) for layer in low_rank_layers(model).values() for p in layer.parameters()}
    for name, p in sorted(named.items(), key=lambda item: id(item[1]) not in factors):
        at = None if id(p) in found else next((i for i, t in enumerate(spare) if _copied(ours.get(name), t)), None)
        if at is not None:
            del spare[at]
            found.add(id(p))
    return [name for name, p in named.items() if id(p) not in found]


def _all_named(model: nn.Module) -> Iterable[tuple[str, Tensor]]:
    """Parameters and buffers, those that have several names under each."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _copied(tensor: Tensor | None, other: Tensor) -> bool:
    """Whether another one has its numbers, bit for bit, maybe in another precision or on another device."""
    if tensor is None or tensor.shape != other.shape or tensor.is_floating_point() != other.is_floating_point():
        return False
    bits = (t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (tensor.to(other), other))
    return torch.equal(*bits)


def cast(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Bring a network, with all that was factored, into the precision that it was saved in, in place.

    Where that is one, what is not saved (a table of frequencies) follows if it was of the network's own precision.
    Complex numbers stay as they are.
    """
    saved = {name: tensor.dtype for name, tensor in state.items() if tensor.is_floating_point()}
    single = next(iter(saved.values())) if len(set(saved.values())) == 1 else None
    there = (*model.named_parameters(), *model.named_buffers())
    own = {tensor.dtype for name, tensor in there if name in saved}
    for name, tensor in there:
        wanted = saved.get(name) or (single if tensor.dtype in own else None)
        if wanted is not None and tensor.is_floating_point() and tensor.dtype != wanted:
            tensor.data = tensor.data.to(wanted)
