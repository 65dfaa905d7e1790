"""What the method must know of a class of layers."""

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hypercompress.kinds.groups import by_group
from hypercompress.kinds.low_rank import LowRank, as_weight, weight_of


class LayerKind(ABC):
    """A class of layers that are a matrix: ``y = W x + b`` at every sample and position.

    A new kind gives a name, a matrix and a low-rank twin; `registry.register_kind` makes it known. Everything else
    (cost, curvature, allocation, reconstruction, saving) follows. The module must have ``weight`` and ``bias`` (perhaps
    ``None``).
    """

    name: str
    channel_axis: int = -1  # of the layer's output, where it has an axis of samples
    # Names of the parameters, buffers and modules that the twin stands in for; ``None``: of whatever the layer holds. A
    # layer that holds more is left alone: somebody else reads that.
    parts: frozenset[str] | None = None
    spreads: bool = False  # whether the matrix runs at each position of the input, and adds to several of the output

    @abstractmethod
    def matrix(self, module: nn.Module) -> Float[Tensor, "*g o d"]:
        """The matrix that the layer multiplies with, or one for each of its `groups`, detached; a view of its weight
        where it can be one.
        """

    @abstractmethod
    def low_rank(self, module: nn.Module, rank: int, input_rank: int | None = None) -> LowRank:
        """The empty low-rank twin, on the module's device, in its dtype.

        Its ``reduce`` takes what the module takes and gives ``rank`` channels for each group; its ``expand`` holds the
        bias. An ``input_rank`` is asked for only of a kind that gives `input_channels`, and of a single group: its
        ``reduce`` is then a `Projected`.
        """

    def groups(self, module: nn.Module) -> int:  # noqa: ARG002
        """Independent matrices that the layer consists of, each on its own share of the channels, in their order."""
        return 1

    def axis_of(self, y: Tensor) -> int:  # noqa: ARG002
        """The axis of the channels in this input or output: a convolution takes one without an axis of samples, too."""
        return self.channel_axis

    def batched(self, x: Tensor) -> Tensor:
        """The input or output with an axis of samples."""
        return x[None] if self.axis_of(x) % x.ndim == 0 else x

    def input_channels(self, module: nn.Module, x: Tensor) -> Float[Tensor, "n c"] | None:  # noqa: ARG002
        """Inputs as one row of channels per sample and position, if the kind has a kernel with channels to project."""
        return None

    def input_rows(self, module: nn.Module, x: Tensor) -> Float[Tensor, "*g n d"]:
        """Inputs as one row of the matrix product per sample and position.

        They are what ``reduce`` gives with the identity as its matrix, whatever stride, padding and dilation do.
        """
        d, groups = self.matrix(module).shape[-1], self.groups(module)
        with torch.random.fork_rng(devices=[]):  # without a lock: hooks come here, in whichever thread
            reduce = self.low_rank(module, d).reduce.to(x.device, x.dtype)
        with torch.no_grad():
            weight_of(reduce).copy_(as_weight(reduce, torch.eye(d, dtype=x.dtype, device=x.device).repeat(groups, 1)))
            rows: Tensor = reduce(x)
        return by_group(self.rows(rows), groups)

    def input_mean(self, module: nn.Module, x: Tensor) -> Float[Tensor, "*g d"]:
        """Mean of `input_rows` over samples and positions."""
        return self.input_rows(module, self.batched(x).mean(0, keepdim=True)).mean(-2)

    def rows(self, y: Tensor) -> Float[Tensor, "n c"]:
        """Outputs (or their gradients, or the reduced channels) as one row per sample and position."""
        y = y.movedim(self.axis_of(y), -1)
        return y.reshape(-1, y.shape[-1])

    def taps(self, module: nn.Module) -> int:
        """Positions of the input that one output reads: the size of a kernel."""
        return math.prod(weight_of(module).shape[2:])

    def strided(self, module: nn.Module) -> bool:
        """Whether there are fewer outputs than inputs."""
        stride = getattr(module, "stride", 1)
        return max(stride) > 1 if isinstance(stride, tuple) else stride > 1
