"""The kinds that are known, by the class of a module. A subclass is of its kind if it computes as that class does."""

from timm.layers.conv2d_same import Conv2dSame
from timm.layers.linear import Linear as TimmLinear
from torch import nn

from hypercompress.alone import drawing
from hypercompress.kinds.conv import ConvKind
from hypercompress.kinds.linear import LinearKind
from hypercompress.kinds.low_rank import LowRank
from hypercompress.kinds.protocol import LayerKind
from hypercompress.kinds.transposed import TransposedKind

_KINDS: dict[type[nn.Module], LayerKind] = {
    nn.Linear: LinearKind(),
    TimmLinear: LinearKind(TimmLinear),  # the classifier of MobileNetV3, GhostNet, LCNet and their kin
    nn.Conv1d: ConvKind("conv1d", nn.Conv1d),
    nn.Conv2d: ConvKind("conv2d", nn.Conv2d),
    nn.Conv3d: ConvKind("conv3d", nn.Conv3d),
    Conv2dSame: ConvKind("conv2d", Conv2dSame),
    nn.ConvTranspose1d: TransposedKind("conv_transpose1d", nn.ConvTranspose1d),
    nn.ConvTranspose2d: TransposedKind("conv_transpose2d", nn.ConvTranspose2d),
    nn.ConvTranspose3d: TransposedKind("conv_transpose3d", nn.ConvTranspose3d),
}
PLAIN = frozenset({"weight", "bias"})
# What a subclass may have of its own and still compute as the class that it derives from.
BESIDE = frozenset(
    {"__module__", "__doc__", "__annotations__", "__constants__", "__firstlineno__", "__static_attributes__"}
    | {"__init__", "reset_parameters", "extra_repr", "__repr__"}
)
for _kind in _KINDS.values():  # of these instances only: a kind of one's own may derive from their classes
    _kind.parts = PLAIN


def register_kind(module_class: type[nn.Module], kind: LayerKind) -> None:
    """Make a class of layers known to every part of the package, in this process.

    A student with such layers needs the same registration before it is loaded again.

    Args:
        module_class: matched exactly, or by a subclass that changes nothing of what it computes.
        kind: what is to be known of it; replaces what was registered before.

    Example:
        >>> class EqualisedLinear(nn.Linear):
        ...     def forward(self, x):
        ...         return nn.functional.linear(x, self.weight / self.in_features**0.5, self.bias)
        >>> class EqualisedKind(LinearKind):
        ...     name = "equalised"
        ...     def matrix(self, module):
        ...         return module.weight.detach() / module.in_features**0.5
        >>> register_kind(EqualisedLinear, EqualisedKind())
    """
    _KINDS[module_class] = kind


def kind_of(module: nn.Module) -> LayerKind | None:
    """The kind of a module; ``None`` if its class is not known, or changes what a known one computes."""
    classes = type(module).__mro__
    known = next((base for base in classes if base in _KINDS), None)
    if known is None or any(_changes(derived, known) for derived in classes[: classes.index(known)]):
        return None
    return _KINDS[known]


def known_kind(module: nn.Module) -> LayerKind:
    """The kind of a module that has one, as each candidate does.

    Raises:
        TypeError: it has none.
    """
    kind = kind_of(module)
    if kind is None:
        raise TypeError(f"received {type(module).__name__}; expected a registered kind of layer; see register_kind")
    return kind


def told(module: nn.Module) -> str:
    """The class of a module that is of no known kind; with where it is from, if a known one is called so, too."""
    of = type(module)
    alike = any(known.__name__ == of.__name__ for known in _KINDS)
    return f"{of.__module__}.{of.__qualname__}" if alike else of.__name__


def _changes(derived: type, known: type) -> bool:
    """Whether a subclass has more of its own than another start and what belongs to the class, not to an instance.

    A method of its own may be called where no trial sees it, as in training; its low-rank form would not have it.
    Properties count, too: torch's parametrisations make such of a weight.
    """
    return any(
        hasattr(known, name) or not isinstance(value, (staticmethod, classmethod))
        for name, value in vars(derived).items()
        if name not in BESIDE
    )


def low_rank_like(dense: nn.Module, rank: int, input_rank: int | None = None) -> LowRank:
    """The empty low-rank layer that stands in for ``dense``, on its device, in its dtype. Random states stay as they
    are: what torch draws for a new layer is overwritten.

    Raises:
        TypeError: no kind is known for its class, or it has no input channels to project.
    """
    kind = known_kind(dense)
    with drawing():
        layer = kind.low_rank(dense, rank) if input_rank is None else kind.low_rank(dense, rank, input_rank)
    if input_rank is not None and layer.input_rank != input_rank:
        raise TypeError(f"received an input rank for {type(dense).__name__}; expected a kind of layer with a kernel")
    return layer
