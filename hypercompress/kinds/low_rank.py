"""The low-rank layer: two plain modules, so that export, quantization and FLOP counters need no special case."""

from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from hypercompress.errors import WriteError
from hypercompress.kinds.groups import stacked
from hypercompress.kinds.product import Product, product_of
from hypercompress.specs import LayerFactors

Dense = TypeVar("Dense", bound=nn.Module)


class LowRank(nn.Sequential):
    """``expand(reduce(x))``. ``weight`` and ``bias`` read as the dense layer's would, for code that looks at them.

    Args:
        reduce: to ``rank`` channels a group, without a bias; a `Projected` if the layer is factored on both sides.
        expand: to the layer's outputs, with the layer's bias.

    Shape: as the layer it replaces.
    """

    if TYPE_CHECKING:  # torch.jit.script knows no nn.Module as the type of an attribute, and takes the modules' own
        reduce: nn.Module
        expand: nn.Module
    rank: int
    groups: int = 1
    # Whether the dense layer with the product as its weight is of the replaced layer's own class.
    restores_class = True
    # torch.jit.script leaves these out: it would compile them, and knows neither other classes nor what they call.
    __jit_unused_properties__ = ("weight", "bias", "input_rank")

    def __init__(self, reduce: nn.Module, expand: nn.Module, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.add_module("reduce", reduce)
        self.add_module("expand", expand)

    def register_parameter(self, name: str, param: Any) -> None:
        """As of any module, but for the product, which torch's pruning would make a parameter of.

        Raises:
            WriteError: it is the product.
        """
        if isinstance(param, Product):
            raise WriteError(
                f"received the weight of a factored layer as the parameter {name}; expected one of its own, because it "
                "is the product of the layer's factors; prune its factors (layer.reduce and layer.expand), or the "
                "layers of student.to_dense()"
            )
        super().register_parameter(name, param)

    @property
    def input_rank(self) -> int | None:
        """Channels that the input is projected to; ``None`` if it is not."""
        return self.reduce.input_rank if isinstance(self.reduce, Projected) else None

    @property
    def bias(self) -> Tensor | None:
        bias: Tensor | None = self.expand.bias  # type: ignore[assignment]
        return bias

    @property
    def weight(self) -> Tensor:
        """The product, in the dense layer's shape: [out, in] or [out, in, *kernel]; made when it is used."""
        expand, reduce = weight_of(self.expand), weight_of(self.reduce)
        return product_of(joined, (expand, reduce), torch.Size((expand.shape[0], *reduce.shape[1:])))

    def to_dense(self) -> nn.Module:
        """The layer with the product as its weight.

        Raises:
            NotImplementedError: a kind of layer that has no such form.
        """
        raise NotImplementedError(f"{type(self).__name__} has no dense form")

    @torch.no_grad()
    def filled(self, dense: Dense) -> Dense:
        """``dense`` with the product and the bias; device and dtype are this layer's, and so is what is frozen.

        All factors are multiplied in float64 and the product is rounded once: each weight is within a relative ``u`` of
        that of the factors, ``u`` the unit roundoff of the dtype (2^-24 in float32), besides float64's own error, at
        most ``(r + q) 2^-52`` times the product of the factors' absolute values (Higham, 2002, section 3.5).
        """
        expand = weight_of(self.expand)
        dense = dense.to(expand.device, expand.dtype).train(self.training)
        state = {"weight": as_weight(dense, factors_of(self).to(torch.float64).product())}
        if self.bias is not None:
            state["bias"] = self.bias
        dense.load_state_dict(state)
        return frozen_as(dense, self.expand)


def frozen_as(layer: Dense, other: nn.Module) -> Dense:
    """The layer, its bias frozen if the other's is, and all else if the other's weight is."""
    layer.requires_grad_(weight_of(other).requires_grad)
    if isinstance(layer.bias, Tensor) and isinstance(other.bias, Tensor):
        layer.bias.requires_grad_(other.bias.requires_grad)
    return layer


class Projected(nn.Sequential):
    """A kernel over few channels: ``core(project(x))``. ``weight`` reads as that of the two in one.

    Args:
        project: a pointwise convolution of the input channels, without a bias.
        core: the kernel, with stride, padding and dilation.
    """

    if TYPE_CHECKING:  # as above
        project: nn.Module
        core: nn.Module
    __jit_unused_properties__ = ("weight", "input_rank")

    def __init__(self, project: nn.Module, core: nn.Module) -> None:
        super().__init__()
        self.add_module("project", project)
        self.add_module("core", core)

    @property
    def input_rank(self) -> int:
        return weight_of(self.project).shape[0]

    @property
    def weight(self) -> Tensor:
        core, project = weight_of(self.core), weight_of(self.project)
        return product_of(projected, (core, project), torch.Size((core.shape[0], project.shape[1], *core.shape[2:])))


def joined(expand: Tensor, reduce: Tensor) -> Tensor:
    """One weight for two layers in a row, of which the second is pointwise; both have the same groups."""
    groups = reduce.shape[0] // expand.shape[1]
    return (stacked(expand.flatten(1), groups) @ stacked(reduce.flatten(1), groups)).reshape(-1, *reduce.shape[1:])


def projected(core: Tensor, project: Tensor) -> Tensor:
    """One weight for two layers in a row, of which the first is pointwise."""
    return torch.einsum("rq...,qc->rc...", core, project.flatten(1))


def low_rank_layers(model: nn.Module) -> dict[str, LowRank]:
    """The factored layers of a model by dotted path."""
    return {n: m for n, m in model.named_modules() if isinstance(m, LowRank)}


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a module."""
    assert isinstance(module.weight, Tensor)
    return module.weight


def outputs_first(module: nn.Module, weight: Tensor) -> Tensor:
    """The weight of a module as [out, in, ...], or the way back: torch has the inputs first where it is transposed."""
    return weight.transpose(0, 1) if getattr(module, "transposed", False) else weight


def matrix(module: nn.Module, groups: int = 1) -> Tensor:
    """The weight of a module as a matrix [out, d], or as one for each group."""
    return stacked(outputs_first(module, weight_of(module)).flatten(1), groups)


def as_weight(module: nn.Module, values: Tensor) -> Tensor:
    """A matrix [out, d], or one for each group, in the shape of the module's weight: the inverse of `matrix`."""
    return outputs_first(module, values.reshape(outputs_first(module, weight_of(module)).shape))


def factors_of(layer: LowRank) -> LayerFactors:
    """The factors that a low-rank layer holds now; detached, without the bias."""
    inner = layer.reduce.core if isinstance(layer.reduce, Projected) else layer.reduce
    project = matrix(layer.reduce.project).detach() if isinstance(layer.reduce, Projected) else None
    expand, reduce = (matrix(part, layer.groups).detach() for part in (layer.expand, inner))
    return LayerFactors(expand, reduce, None, project)


@torch.no_grad()
def fill(layer: LowRank, factors: LayerFactors, bias: Tensor | None) -> None:
    """Copy factors (and the bias they bring, else the dense layer's) into a low-rank layer."""
    parts = [(layer.expand, factors.expand)]
    if isinstance(layer.reduce, Projected):
        assert factors.project is not None
        parts += [(layer.reduce.core, factors.reduce), (layer.reduce.project, factors.project)]
    else:
        parts.append((layer.reduce, factors.reduce))
    for part, value in parts:
        weight_of(part).copy_(as_weight(part, value))
    new = bias if factors.bias is None else factors.bias
    if layer.bias is not None and new is not None:
        layer.bias.copy_(new)
