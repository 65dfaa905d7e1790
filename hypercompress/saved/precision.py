"""The precision that a student was saved in, which a network that is built anew does not have."""

from collections.abc import Mapping

from torch import Tensor, nn


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
