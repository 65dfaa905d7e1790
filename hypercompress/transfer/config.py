"""The shape of a transfer network, and the bounds of what it may change."""

from dataclasses import dataclass

from hypercompress.errors import GeneratorError
from hypercompress.transfer.adaptable import Role


@dataclass(frozen=True)
class TransferConfig:
    """Everything needed to build a transfer network; stored beside its weights.

    Args:
        width: channels of a token, a multiple of ``heads``.
        depth: transformer blocks.
        heads: attention heads.
        outer: rank of the outer product in a core.
        scale_bound: largest |log change| of a scale.
        shift_bound: largest shift of a norm or a bias, in deviations of the channel.
        core_bound: largest entry of each part of a core.
        roles: what it adapts.
        mix_bound: how far a norm's input may be brought to the support set's own moments, 1: wholly.
    """

    width: int = 64
    depth: int = 2
    heads: int = 4
    outer: int = 2
    scale_bound: float = 1.0
    shift_bound: float = 0.5
    core_bound: float = 0.5
    mix_bound: float = 1.0
    roles: tuple[Role, ...] = tuple(Role)

    def __post_init__(self) -> None:
        sizes = (self.width, self.depth, self.heads, self.outer)
        bounds = (self.scale_bound, self.shift_bound, self.core_bound, self.mix_bound)
        if min(sizes) < 1 or self.width % self.heads or min(bounds) < 0 or not self.roles:
            raise GeneratorError(
                f"received width={self.width}, depth={self.depth}, heads={self.heads}, outer={self.outer} with bounds "
                f"{', '.join(f'{bound:g}' for bound in bounds)} and {len(self.roles)} roles; expected sizes above 0, a "
                "width that is a multiple of heads, bounds from 0 and at least one role; choose others"
            )
