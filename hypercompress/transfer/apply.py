"""Changes put into a model: as parameters for a functional forward pass, and in place."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hypercompress.kinds import known_kind
from hypercompress.kinds.low_rank import as_weight, outputs_first
from hypercompress.transfer.adaptable import Role, Site
from hypercompress.transfer.moments import Moments
from hypercompress.transfer.network import Changes

TINY = 1e-6


def adapted_parameters(
    model: nn.Module, sites: Sequence[Site], moments: Mapping[str, Moments], changes: Changes
) -> dict[str, Tensor]:
    """New values of the parameters that change, by name; differentiable in the changes.

    A norm's scale ``g`` and shift ``b`` become those of ``g e^s (z - a mu) / var^(a/2) + b + |g| t``: ``z`` its
    normalised input, ``mu`` and ``var`` the support set's moments of it, ``a`` the mix, ``s`` and ``t`` the changes.

    Args:
        sites: those that ``changes`` tells of, in that order.
        moments: by name of the site.
    """
    found: dict[str, Tensor] = {}
    for site, scale, shift, left, right, mix in _by_site(sites, changes):
        module, of = model.get_submodule(site.module), moments[site.name]
        if site.role is Role.NORM:
            found |= _norm(site, module, of, scale, shift, mix)
        elif site.role is Role.BIAS:
            name = f"{site.module}.bias"
            old = _parameter(module, "bias")
            found[name] = old + ((of.variance + TINY).sqrt() * shift).to(old)
        else:
            core = torch.diag(scale) + left @ right.T
            found |= _core(site, model, core)
    return found


def copies(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Copies of parameters by name, for `write` to put back."""
    return {name: model.get_parameter(name).detach().clone() for name in names}


@torch.no_grad()
def write(model: nn.Module, parameters: Mapping[str, Tensor]) -> None:
    """Copy new values into the model, in place."""
    for name, value in parameters.items():
        model.get_parameter(name).copy_(value)


def _by_site(
    sites: Sequence[Site], changes: Changes
) -> Iterator[tuple[Site, Tensor, Tensor, Tensor, Tensor, Float[Tensor, ""]]]:
    sizes = [site.channels for site in sites]
    parts = (part.split(sizes) for part in (changes.scale, changes.shift, changes.left, changes.right))
    return zip(sites, *parts, changes.mix, strict=True)


def _norm(site: Site, module: nn.Module, of: Moments, scale: Tensor, shift: Tensor, mix: Tensor) -> dict[str, Tensor]:
    old = _parameter(module, "weight")
    weight = old * (scale - 0.5 * mix * (of.variance + TINY).log()).exp().to(old)
    found = {f"{site.module}.weight": weight}
    if getattr(module, "bias", None) is not None:
        bias = _parameter(module, "bias")
        found[f"{site.module}.bias"] = bias + old.abs() * shift.to(old) - weight * (mix * of.mean).to(old)
    return found


def _core(site: Site, model: nn.Module, core: Float[Tensor, "r r"]) -> dict[str, Tensor]:
    """Of a dense layer ``W + U D U^T W``; of a low-rank one the layer behind becomes ``expand + expand D``."""
    if site.frame is None:
        path = f"{site.module.removesuffix('.reduce')}.expand"
        expand = model.get_submodule(path)
        old = _parameter(expand, "weight")
        rows = outputs_first(expand, old).flatten(1)
        return {f"{path}.weight": old + as_weight(expand, rows @ core.to(old))}
    module = model.get_submodule(site.module)
    old = _parameter(module, "weight")
    frame = site.frame.to(old)
    change = frame @ (core.to(old) @ (frame.T @ known_kind(module).matrix(module)))
    return {f"{site.module}.weight": old + as_weight(module, change)}


def _parameter(module: nn.Module, name: str) -> Tensor:
    value = getattr(module, name)
    assert isinstance(value, Tensor)
    return value.detach()
