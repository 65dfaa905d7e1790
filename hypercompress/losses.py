"""Distillation losses."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hypercompress.errors import ModelError
from hypercompress.running.hooks import hooked
from hypercompress.running.outputs import divergence, logits_of


def distillation_kl(
    student: Float[Tensor, "b ..."], teacher: Float[Tensor, "b ..."], temperature: float = 1.0
) -> Float[Tensor, ""]:
    """``T^2 KL(teacher || student)`` of the softened predictions, mean over the batch (Hinton et al. 2015, sec. 2).

    Of outputs that are numbers (`outputs.logits_of`) half the squared difference, which no temperature softens.
    """
    softened = 1.0 if logits_of(teacher) is None else temperature
    return divergence(teacher, student, softened).mean() * softened**2


def feature_loss(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Mean over feature maps of the squared error relative to the teacher's variance; maps are not pooled.

    Args:
        student, teacher: the same maps of both networks, equal shapes, pairwise.
    """
    if not teacher:
        raise ValueError("received no feature maps; expected at least one pair; name the modules to compare")
    terms = [
        F.mse_loss(ours.float(), theirs.float()) / theirs.float().var().clamp_min(1e-6)
        for ours, theirs in zip(student, teacher, strict=True)
    ]
    return torch.stack(terms).mean()


@contextmanager
def watching(model: nn.Module, names: Sequence[str]) -> Iterator[list[Tensor]]:
    """Collects the outputs of the named modules of one forward pass after another.

    Raises:
        ModelError: in such a pass: a module returns something other than one tensor.
    """
    seen: list[Tensor] = []

    def keep(module: nn.Module, _inputs: object, output: object) -> None:
        if not isinstance(output, Tensor):
            raise ModelError(
                f"received {type(output).__name__} from a watched {type(module).__name__}; expected one tensor; leave "
                "the module out"
            )
        seen.append(output)

    with hooked(model.get_submodule(name).register_forward_hook(keep) for name in names):
        yield seen
