"""The shape of a hypernetwork, and the bounds of what it may change."""

from dataclasses import dataclass

from hypercompress.errors import GeneratorError


@dataclass(frozen=True)
class HypernetConfig:
    """Everything needed to build a hypernetwork; stored beside its weights.

    Args:
        width: channels of a token, a multiple of ``heads``.
        depth: transformer blocks.
        heads: attention heads.
        weight_bound: largest |log weight| of a layer in the allocation, with data.
        free_weight_bound: the same without data, where layers are not comparable to begin with.
        inner_bound: largest |log weight| of a layer's input channels beside that of the layer.
        exponent_bound: largest change of the exponent that bends a layer's spectrum in the allocation.
        gain_bound: largest relative change of a direction.
        rotation_bound: largest share of the plain-weight metric mixed into the directions, to first order.
        curvature_bound: largest |log change| of a channel's guessed curvature, without data.

    Raises:
        GeneratorError: sizes that do not fit together, or a bound below 0.
    """

    width: int = 96
    depth: int = 3
    heads: int = 4
    weight_bound: float = 3.0
    free_weight_bound: float = 6.0
    inner_bound: float = 1.0
    exponent_bound: float = 0.5
    gain_bound: float = 0.5
    rotation_bound: float = 0.1
    curvature_bound: float = 3.0

    def __post_init__(self) -> None:
        if min(self.width, self.depth, self.heads) < 1 or self.width % self.heads:
            raise GeneratorError(
                f"received width={self.width}, depth={self.depth}, heads={self.heads}; expected positive numbers and a "
                "width that is a multiple of heads; choose others"
            )
        bounds = {name: value for name, value in vars(self).items() if name.endswith("_bound")}
        if low := [f"{name}={value:g}" for name, value in bounds.items() if not value >= 0]:
            raise GeneratorError(f"received {', '.join(low)}; expected bounds of 0 or more; choose others")
