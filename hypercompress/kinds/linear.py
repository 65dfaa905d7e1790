"""Linear layers."""

from jaxtyping import Float
from torch import Tensor, nn

from hypercompress.kinds.low_rank import LowRank, weight_of
from hypercompress.kinds.protocol import LayerKind


class LowRankLinear(LowRank):
    """``y = E (R x) + b`` with ``R [r, in]`` and ``E [out, r]``.

    Args:
        like: class of the dense layer.

    Shape: ``[..., in]`` to ``[..., out]``, as `torch.nn.Linear`.
    """

    def __init__(
        self, in_features: int, out_features: int, rank: int, bias: bool, like: type[nn.Linear] = nn.Linear
    ) -> None:
        super().__init__(nn.Linear(in_features, rank, bias=False), nn.Linear(rank, out_features, bias=bias), rank)
        self.in_features, self.out_features, self.like = in_features, out_features, like

    def to_dense(self) -> nn.Linear:
        return self.filled(self.like(self.in_features, self.out_features, self.bias is not None))


class LinearKind(LayerKind):
    """`torch.nn.Linear`, timm's own, and whatever computes ``x @ matrix(module).T + bias``.

    Args:
        like: class of the layer that the factors are multiplied out to.
    """

    name = "linear"

    def __init__(self, like: type[nn.Linear] = nn.Linear) -> None:
        self.like = like

    def matrix(self, module: nn.Module) -> Float[Tensor, "out d"]:
        return weight_of(module).detach()

    def low_rank(self, module: nn.Module, rank: int, input_rank: int | None = None) -> LowRank:  # noqa: ARG002
        weight = self.matrix(module)
        out, d = weight.shape
        bias = getattr(module, "bias", None) is not None
        return LowRankLinear(d, out, rank, bias, self.like).to(weight.device, weight.dtype)

    def input_rows(self, module: nn.Module, x: Tensor) -> Float[Tensor, "n d"]:  # noqa: ARG002
        return self.rows(x)
