"""The precision that a student was saved in, which a network that is built anew does not have."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn


def cast(model: nn.Module, state: Mapping[str, Tensor], factored: Iterable[str]) -> None:
    """Bring a network into the precision that it was saved in, in place.

    Where that is one, what is not saved (a table of frequencies) follows if it was of the network's own precision.
    Complex numbers stay as they are.
    """
    saved = {name: tensor.dtype for name, tensor in state.items() if tensor.is_floating_point()}
    # The factors of a layer stand for its weight.
    saved |= {f"{name}.weight": saved[key] for name in factored if (key := f"{name}.reduce.weight") in saved}
    single = next(iter(saved.values())) if len(set(saved.values())) == 1 else None
    own = {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        wanted = saved.get(name) or (single if tensor.dtype in own else None)
        if wanted is not None and tensor.is_floating_point() and tensor.dtype != wanted:
            tensor.data = tensor.data.to(wanted)
