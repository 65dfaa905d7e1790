"""Linear layers."""

from jaxtyping import Float
from torch import Tensor, nn

from hypercompress.kinds.low_rank import LowRank
from hypercompress.kinds.protocol import LayerKind


class LowRankLinear(LowRank):
    """``y = E (R x) + b`` with ``R [r, in]`` and ``E [out, r]``.

    Shape: ``[..., in]`` to ``[..., out]``, as `torch.nn.Linear`.
    """

    def __init__(self, in_features: int, out_features: int, rank: int, bias: bool) -> None:
        super().__init__(nn.Linear(in_features, rank, bias=False), nn.Linear(rank, out_features, bias=bias), rank)
        self.in_features, self.out_features = in_features, out_features

    def to_dense(self) -> nn.Linear:
        return self.filled(nn.Linear(self.in_features, self.out_features, self.bias is not None))


class LinearKind(LayerKind):
    """`torch.nn.Linear`, and whatever computes ``x @ matrix(module).T + bias``."""

    name = "linear"

    def matrix(self, module: nn.Module) -> Float[Tensor, "out d"]:
        assert isinstance(module.weight, Tensor)
        return module.weight.detach()

    def low_rank(self, module: nn.Module, rank: int, input_rank: int | None = None) -> LowRank:  # noqa: ARG002
        weight = self.matrix(module)
        out, d = weight.shape
        return LowRankLinear(d, out, rank, getattr(module, "bias", None) is not None).to(weight.device, weight.dtype)

    def input_rows(self, module: nn.Module, x: Tensor) -> Float[Tensor, "n d"]:  # noqa: ARG002
        return self.rows(x)
