"""What of a model can be adapted: scales and shifts of norms, biases, and small cores of layers that are a matrix.

A core ``D`` acts among the r leading output directions of a layer: ``W' = W + U D U^T W``. Of a low-rank layer these
are its own r channels, ``W' = expand (I + D) reduce``. Scales and shifts: Perez et al. 2018 (FiLM), Requeima et al.
2019 (CNAPs); cores: Xie et al. 2023 (LoRA-XS, arXiv 2405.17604) with generated instead of trained entries.

Shape letters: ``n`` images; ``c`` channels, or directions of a core; ``p`` positions.
"""

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

import torch
import torch.nn.functional as F
from jaxtyping import Float
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.norm import LayerNorm2d
from timm.layers.norm_act import LayerNormAct2d
from torch import Tensor, nn

from hypercompress.kinds import LowRank, kind_of
from hypercompress.running.tracing import BATCH_NORMS, NORMS

CORE_RANK = 8  # directions of the core of a dense layer
CORES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv2dSame)  # by exact type: a subclass may change its weight


class Role(StrEnum):
    """What is adapted at a site."""

    NORM = "norm"
    BIAS = "bias"
    CORE = "core"


@dataclass(frozen=True)
class Site:
    """A place where a model is adapted, channel by channel.

    Args:
        module: dotted path.
        role: what is adapted there.
        channels: of the norm or the layer's output; directions of a core.
        axis: of the channels in what `read` returns before it is pooled.
        frame: left singular directions [out, r] of a dense layer's core; ``None`` elsewhere.
    """

    module: str
    role: Role
    channels: int
    axis: int
    frame: Float[Tensor, "out r"] | None = None

    @property
    def name(self) -> str:
        """Unique in a model."""
        return f"{self.module}:{self.role}"

    def read(self, module: nn.Module, inputs: Tensor, output: Tensor) -> Float[Tensor, "n c p"]:
        """What the site's channels say: the normalised input of a norm, the output of a layer, its directions."""
        if self.role is Role.NORM:
            return channels_first(normalised(module, inputs, self.axis), self.axis)
        values = channels_first(output, self.axis)
        if self.frame is None:
            return values
        bias = getattr(module, "bias", None)
        centred = values if bias is None else values - bias[:, None]
        return torch.einsum("ncp,cr->nrp", centred, self.frame.to(values))


@dataclass(frozen=True)
class Adaptable:
    """The sites of a model, and what cannot be adapted.

    Args:
        sites: in the order of the modules.
        refused: reason by dotted path, of every module that owns parameters and has no site.
    """

    sites: tuple[Site, ...]
    refused: dict[str, str]


def adaptable(model: nn.Module, without: str = "", roles: tuple[Role, ...] = tuple(Role)) -> Adaptable:
    """The sites of a model.

    Args:
        without: dotted path of the classifier, which is replaced.
        roles: which to look for.
    """
    sites, refused = list[Site](), dict[str, str]()
    modules = dict(model.named_modules())
    holders = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    parts = {f"{name}.{part}" for name, m in modules.items() if isinstance(m, LowRank) for part in ("reduce", "expand")}
    for name, module in modules.items():
        own = list(module.parameters(recurse=False))
        if not own and not isinstance(module, LowRank):
            continue
        if without and (name == without or name.startswith(f"{without}.")):
            refused[name] = "the classifier is replaced"
        elif any(holders[id(p)] > 1 for p in own):
            refused[name] = "its parameters are shared with another module"
        else:
            part = any(name == p or name.startswith(f"{p}.") for p in parts)
            found = _sites(name, module, part=part, cores=Role.CORE in roles)
            sites += [site for site in found if site.role in roles]
            if not found and own and name.removesuffix(".expand") == name:
                refused[name] = _why_not(module, name in parts)
    return Adaptable(tuple(sites), refused)


def _sites(name: str, module: nn.Module, *, part: bool, cores: bool) -> list[Site]:
    """The sites of one module.

    Args:
        part: of a low-rank layer, whose core is a site of its own.
        cores: find the directions of dense layers, which is an eigendecomposition each; else none has directions.
    """
    if isinstance(module, NORMS):
        return [] if _why_not_norm(module) else [Site(name, Role.NORM, _affine(module).numel(), _axis(module))]
    if isinstance(module, LowRank):
        if module.groups > 1:
            return []
        return [Site(f"{name}.reduce", Role.CORE, module.rank, 1 if _is_conv(module.expand) else -1)]
    kind, found = kind_of(module), list[Site]()
    if kind is None or "weight" not in module._parameters:
        return found
    bias = getattr(module, "bias", None)
    if isinstance(bias, nn.Parameter):
        found.append(Site(name, Role.BIAS, bias.numel(), kind.channel_axis))
    if type(module) in CORES and not part and getattr(module, "groups", 1) == 1:
        matrix = kind.matrix(module)
        rank = min(CORE_RANK, *matrix.shape)
        frame = leading_directions(matrix, rank) if cores else None
        found.append(Site(name, Role.CORE, rank, kind.channel_axis, frame))
    return found


def leading_directions(matrix: Float[Tensor, "out d"], rank: int) -> Float[Tensor, "out r"]:
    """The left singular directions of the largest singular values, by the eigenvectors of the smaller Gram matrix."""
    w = matrix.double()
    if w.shape[0] <= w.shape[1]:
        vectors: Tensor = torch.linalg.eigh(w @ w.T).eigenvectors
        return vectors[:, -rank:].flip(1).to(matrix)
    right = torch.linalg.eigh(w.T @ w).eigenvectors[:, -rank:].flip(1)
    basis: Tensor = torch.linalg.qr(w @ right).Q
    return basis.to(matrix)


def normalised(module: nn.Module, x: Tensor, axis: int) -> Tensor:
    """What a norm multiplies with its scale: its input, normalised."""
    if isinstance(module, BATCH_NORMS):
        mean, variance = module.running_mean, module.running_var
        assert mean is not None  # by _why_not
        assert variance is not None
        shape = (1, -1, *[1] * (x.ndim - 2))
        return (x - mean.view(shape)) * (variance + module.eps).rsqrt().view(shape)
    if isinstance(module, nn.GroupNorm):
        return F.group_norm(x, module.num_groups, eps=module.eps)
    moved = x.movedim(axis, -1)
    plain: Tensor
    if isinstance(module, nn.RMSNorm):
        plain = F.rms_norm(moved, moved.shape[-1:], eps=module.eps)
    else:
        assert isinstance(module, nn.LayerNorm)
        plain = F.layer_norm(moved, moved.shape[-1:], eps=module.eps)
    return plain.movedim(-1, axis)


def channels_first(x: Tensor, axis: int) -> Float[Tensor, "n c p"]:
    """One row of positions for each image and channel."""
    moved = x.movedim(axis, 1)
    return moved.reshape(moved.shape[0], moved.shape[1], -1)


def _axis(module: nn.Module) -> int:
    """Where a norm has its channels. timm has many that subclass `torch.nn.LayerNorm` and have them first: ``2d`` is in
    their names.
    """
    first = (*BATCH_NORMS, nn.GroupNorm, LayerNorm2d, LayerNormAct2d)
    return 1 if isinstance(module, first) or "2d" in type(module).__name__ else -1


def _affine(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)  # by _why_not
    return weight


def _is_conv(module: nn.Module) -> bool:
    kind = kind_of(module)
    return kind is not None and kind.channel_axis == 1


def _why_not_norm(module: nn.Module) -> str:
    if getattr(module, "weight", None) is None:
        return "a norm without scales"
    if isinstance(module, BATCH_NORMS) and module.running_mean is None:
        return "a BatchNorm that keeps no moments"
    shape = getattr(module, "normalized_shape", (1,))
    return "a norm over several axes at once" if len(shape) > 1 else ""


def _why_not(module: nn.Module, part: bool) -> str:
    """The reason for a module with parameters and no site."""
    if part:
        return "part of a low-rank layer, whose core stands for it"
    if isinstance(module, NORMS):
        return _why_not_norm(module)
    if isinstance(module, LowRank) or getattr(module, "groups", 1) > 1:
        return "a grouped layer without a bias"
    return f"no scale, bias or matrix that is known: {type(module).__name__}"
