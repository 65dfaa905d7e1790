"""Levels: pooled maps of a timm model's stages, which its classifier reads beside the last features.

What tells the classes of a far task apart is often gone from the last features and still there in the maps before them
(Evci et al. 2022, Head2Toe, arXiv 2201.03529, section 3, who read all of them through one linear head).

Shape letters: ``n`` images; ``c h w`` channels, height and width of a map; ``g`` cells of a side; ``d`` features.
"""

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hypercompress.errors import ModelError

MOST = 2**24  # features: whoever wrote a student folder, memory is not asked for without bound
_KINDS: dict[type[Any], type[Any]] = {}


@dataclass(frozen=True)
class Levels:
    """What a classifier reads: the last features, and then each map's cells.

    Args:
        last: how many last features, those that timm's own classifier reads.
        indices: of the maps, as timm's ``forward_intermediates`` counts them.
        channels, sides: of each map: channels, and cells of a side that it is pooled to.

    Raises:
        ModelError: no such numbers, or more than `MOST` features.
    """

    last: int
    indices: tuple[int, ...]
    channels: tuple[int, ...]
    sides: tuple[int, ...]

    def __post_init__(self) -> None:
        columns = (self.indices, self.channels, self.sides)
        numbers = [self.last, *self.channels, *self.sides, *(index + 1 for index in self.indices)]
        fitting = len(set(map(len, columns))) == 1 and self.indices and all(type(n) is int and n > 0 for n in numbers)
        if not fitting or self.width > MOST:
            raise ModelError(
                f"received levels {asdict(self)}; expected whole numbers, as many indices as channels and sides, and "
                f"at most {MOST:,} features; check where they come from"
            )

    @property
    def widths(self) -> tuple[int, ...]:
        """How many features each map gives."""
        return tuple(c * g * g for c, g in zip(self.channels, self.sides, strict=True))

    @property
    def width(self) -> int:
        """How many features the classifier reads."""
        return self.last + sum(self.widths)


class ReadsLevels:
    """What `read_levels` adds to the class of a timm model."""

    levels: Levels

    def forward(self, x: Tensor) -> Tensor:
        """One pass: images [n, c, h, w] to logits [n, classes]."""
        model: Any = self
        final, maps = model.forward_intermediates(x, indices=list(self.levels.indices), output_fmt="NCHW")
        parts = [super().forward_head(final, pre_logits=True)]  # type: ignore[misc]
        parts += [pooled(found, side).flatten(1) for found, side in zip(maps, self.levels.sides, strict=True)]
        logits: Tensor = model.get_classifier()(torch.cat(parts, 1))
        return logits

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """timm's, without the classifier.

        Raises:
            ModelError: asked for logits, which need more than the last map.
        """
        if not pre_logits:
            raise ModelError(
                f"received {type(self).__name__}.forward_head of the last map alone; expected the images, as its "
                "classifier reads other maps too; call the model, or pass pre_logits=True"
            )
        features: Tensor = super().forward_head(x, pre_logits=True)  # type: ignore[misc]
        return features

    def reset_classifier(self, *args: Any, **kwargs: Any) -> None:
        """timm's; the new classifier reads the same levels."""
        super().reset_classifier(*args, **kwargs)  # type: ignore[misc]
        _widen(self, self.levels.width)

    def __prepare_scriptable__(self) -> nn.Module:
        """Raises ModelError: torch.jit.script asks for it, and compiles no timm model's ``forward_intermediates``."""
        raise ModelError(
            f"received {type(self).__name__} for torch.jit.script, which compiles no model whose head reads the maps "
            "of all stages; expected one whose head reads the last features; use hypercompress.export, torch.export or "
            "torch.jit.trace, or make it with adapt(..., levels=False)"
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        """By the class underneath, as the class itself has no name that pickle could find."""
        return _empty, (underneath(self),), vars(self)


def read_levels(model: nn.Module, levels: Levels) -> nn.Module:
    """Let the classifier of a timm model read levels too, in place. It is a new one, all zeros; one without classes
    stays away.

    Args:
        model: whose classifier is one linear layer.
    """
    plain = underneath(model)
    model.__class__ = _reading(plain)
    vars(model)["levels"] = levels
    _widen(model, levels.width)
    return model


def read_last(model: nn.Module) -> nn.Module:
    """Undo `read_levels`, in place; the classifier is a new one, all zeros."""
    if isinstance(model, ReadsLevels):
        levels: Levels = vars(model).pop("levels")
        model.__class__ = underneath(model)
        _widen(model, levels.last)
    return model


def underneath(model: Any) -> type[Any]:
    """The class of a model that reads its last features alone."""
    kind: type[Any] = type(model)
    return kind.__mro__[2] if issubclass(kind, ReadsLevels) else kind


def pooled(x: Float[Tensor, "n c h w"], side: int) -> Float[Tensor, "n c g g"]:
    """``F.adaptive_avg_pool2d`` as two matrix products, which every exporter knows for any size."""
    rows, columns = (_cells(size, side, x) for size in x.shape[-2:])
    return rows @ x @ columns.mT


def _cells(size: int, side: int, like: Tensor) -> Float[Tensor, "g h"]:
    """What each cell takes of each of ``size`` places: the mean of those that it touches."""
    places, cells = (torch.arange(n, device=like.device) for n in (size, side))
    first, end = cells * size // side, ((cells + 1) * size + side - 1) // side
    touched = (places >= first[:, None]) & (places < end[:, None])
    return (touched / touched.sum(1, keepdim=True)).to(like.dtype)


def _widen(model: Any, width: int) -> None:
    """Put a linear classifier of so many inputs in the place of the one that is there; of no classes there is none."""
    last = model.get_classifier()
    if not isinstance(last, nn.Linear):
        return
    name = next(name for name, module in model.named_modules() if module is last)
    parent, _, attribute = name.rpartition(".")
    wide = copy.deepcopy(last)  # of its own class: timm's is not torch's
    wide.in_features = width
    wide.weight = nn.Parameter(last.weight.new_zeros(last.out_features, width), last.weight.requires_grad)
    if last.bias is not None:
        wide.bias = nn.Parameter(torch.zeros_like(last.bias), last.bias.requires_grad)
    setattr(model.get_submodule(parent), attribute, wide)


def _reading(plain: type[Any]) -> type[Any]:
    """The class of models that read levels: the same one each time, so that two such models are of one class."""
    if plain not in _KINDS:
        _KINDS[plain] = type(f"{plain.__name__}ReadingLevels", (ReadsLevels, plain), {"__module__": __name__})
    return _KINDS[plain]


def _empty(plain: type[Any]) -> Any:
    """An object for pickle to fill."""
    kind: Any = _reading(plain)
    return kind.__new__(kind)


def levels_from(value: Any) -> Levels:
    """Levels as JSON has them.

    Raises:
        ModelError: something else.
    """
    keys = ("last", "indices", "channels", "sides")
    known = isinstance(value, dict) and set(value) == set(keys) and all(isinstance(value[k], list) for k in keys[1:])
    numbers = [value["last"], *(number for key in keys[1:] for number in value[key])] if known else [None]
    if not all(type(number) is int for number in numbers):
        raise ModelError(f"received levels {value!r}; expected a table of {', '.join(keys)}; save the student again")
    return Levels(value["last"], *(tuple(value[key]) for key in keys[1:]))
