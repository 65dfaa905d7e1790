"""A weight that is multiplied out where it is used, and not where it is only looked at; nobody writes into it."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from hypercompress.errors import WriteError

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

    What would write into it, by itself or by way of ``.data``, is a `WriteError`. A part of it (``weight[0]``,
    ``weight.detach()``) is a tensor like any other, and what is written into that changes nothing else.
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
        result = cls.__torch_dispatch__(func, types, args, kwargs)
        return shown(result) if func in WRITTEN_BY_WAY_OF else result

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        refuse_writes(cls, func, args, kwargs or {})
        args, kwargs = tree_map_only(cls, lambda product: product.join(*product.factors), (args, kwargs or {}))
        return func(*args, **kwargs)


class Shown(Tensor):
    """The numbers of a product, which are read as any others; `nn.Parameter` makes an ordinary parameter of them."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_is_param":  # how `nn.Parameter` marks what it has made of a tensor of another class
            self.__class__ = nn.Parameter  # type: ignore[assignment]
        else:
            super().__setattr__(name, value)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in OF_ALIAS:
            with torch._C.DisableTorchFunctionSubclass():
                alias = func(*args, **(kwargs or {}))
                return alias if isinstance(alias, cls) else alias.as_subclass(cls)
        refuse_writes(cls, func, args, kwargs or {})
        args, kwargs = tree_map_only(cls, plain, (args, kwargs or {}))
        return func(*args, **kwargs)


def shown(values: Tensor) -> Tensor:
    """The tensor, to be read only; one of another class than torch's own (traced, transformed) as it is."""
    ordinary = type(values) is Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(values)
    return values.as_subclass(Shown) if ordinary else values


def plain(values: Tensor) -> Tensor:
    """The tensor as one of torch's own class."""
    with torch._C.DisableTorchFunctionSubclass():
        return values.as_subclass(Tensor)


def refuse_writes(kind: type[Tensor], func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raises WriteError if ``func`` writes into a tensor of this kind."""
    if any(isinstance(value, kind) for value in tree_leaves(written_by(func, args, kwargs))):
        raise WriteError(
            f"received a write ({func.__name__}) into the weight of a factored layer; expected none, because it is the "
            "product of the layer's factors, made anew at each use; write into its factors (layer.reduce and "
            "layer.expand), or into the layers of student.to_dense()"
        )


def written_by(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments that a torch function writes into: as its schema says, or, where it has none, its name."""
    if (schema := getattr(func, "_schema", None)) is not None:
        places = [argument.alias_info is not None and argument.alias_info.is_write for argument in schema.arguments]
        named = [kwargs.get(a.name) for a, written in zip(schema.arguments, places, strict=True) if written]
        return [*(value for value, written in zip(args, places, strict=False) if written), *named]
    name = getattr(func, "__name__", "")
    inplace = name in SETTERS or (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace") is True
    return [*(list((*args, *kwargs.values())[:1]) if inplace else ()), kwargs.get("out")]


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
SETTERS = {"__set__", "__setitem__"}
# What gives a tensor to be written into: `.data` itself, and what `nn.init.orthogonal_` takes.
WRITTEN_BY_WAY_OF = {Tensor.data.__get__, Tensor.view_as}  # type: ignore[attr-defined]
# What `nn.Parameter` calls of a tensor that it is given; neither changes the tensor's numbers.
OF_ALIAS = {Tensor.detach, Tensor.requires_grad_}
