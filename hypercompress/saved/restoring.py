"""A network as it was before it was compressed (a skeleton) takes the form that was saved, for weights to be loaded."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from hypercompress.errors import ArtefactError
from hypercompress.kinds import LowRank, frozen_as, low_rank_like
from hypercompress.packed.ties import Ties
from hypercompress.packed.unpacking import replace_module, unpack_layers
from hypercompress.running.copying import as_written, copy_of, require_module


def copy_of_skeleton(skeleton: Any) -> nn.Module:
    """A copy of what the user built, in evaluation mode, and without `torch.compile`.

    Raises:
        ModelError: it is no module, was scripted, or its parameters hold no values or have no shape yet.
    """
    require_module(skeleton, "the skeleton")
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
