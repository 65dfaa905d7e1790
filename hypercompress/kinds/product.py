"""A weight that is multiplied out where it is used, and not where it is only looked at."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

Join = Callable[[Tensor, Tensor], Tensor]
META = torch.device("meta")


def product_of(join: Join, factors: tuple[Tensor, Tensor], shape: torch.Size) -> Tensor:
    """``join(*factors)``, made when it is used.

    torch.compile cannot make such a tensor in the middle of a graph, and torch.jit would store it: they get the product
    at once. A compiler drops it where it is not used.

    Args:
        factors: the first one's device and dtype are the product's.
        shape: of the product.
    """
    if torch.compiler.is_dynamo_compiling() or torch._C._is_tracing():
        return join(*factors)
    return Product(join, factors, shape)


class Product(Tensor):
    """A product that every torch function which takes it computes anew, with gradients to the factors.

    A model that asks a layer for ``weight.dtype`` in each pass pays nothing for it; and torch's fused transformer layer
    leaves a layer with such a weight to its modules.

    It holds no numbers. It says so to C code by being on the meta device: what asks for no torch function fails there,
    and would read memory that is not there on any other.
    """

    factors: tuple[Tensor, Tensor]
    join: Join

    @staticmethod
    def __new__(cls: type["Product"], join: Join, factors: tuple[Tensor, Tensor], shape: torch.Size) -> "Product":
        learns = any(factor.requires_grad for factor in factors)
        product = Tensor._make_wrapper_subclass(cls, shape, dtype=factors[0].dtype, device=META, requires_grad=learns)
        product.join, product.factors = join, factors
        if learns:
            with torch._C.DisableTorchFunctionSubclass():
                product.register_hook(  # type: ignore[no-untyped-call]
                    lambda gradient: pass_on(gradient, join, factors)
                )
        return product

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in OF_FACTOR:
            return func(args[0].factors[0], *args[1:])
        if func in OF_SHAPE:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **(kwargs or {}))
        return cls.__torch_dispatch__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = tree_map_only(cls, lambda product: product.join(*product.factors), (args, kwargs or {}))
        return func(*args, **kwargs)


def pass_on(gradient: Tensor, join: Join, factors: tuple[Tensor, Tensor]) -> None:
    """Give the factors a gradient that reached the tensor without numbers: of a function with a backward of its own."""
    with torch.enable_grad():
        product = join(*factors)
    torch.autograd.backward(product, gradient)


# What is known without multiplying: what the first factor shares with the product, and what its shape says.
OF_FACTOR = {
    *(getattr(Tensor, name).__get__ for name in ("dtype", "device", "layout", "is_cuda", "is_cpu", "is_meta")),
    *(Tensor.is_floating_point, Tensor.is_complex, Tensor.element_size, Tensor.get_device),
}
OF_SHAPE = {
    *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "requires_grad")),
    *(Tensor.size, Tensor.dim, Tensor.numel, Tensor.__len__),
}
