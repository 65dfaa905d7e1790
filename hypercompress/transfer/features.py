"""What the transfer network reads: features of channels, layers and the task that no permutation of channels changes.

Shape letters: ``m`` channels of all sites together; ``s`` sites.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hypercompress.transfer.adaptable import Role, Site
from hypercompress.transfer.moments import Moments
from hypercompress.transfer.ridge import Ridge

CHANNEL_FEATURES = 8
SITE_FEATURES = 2 * CHANNEL_FEATURES + 5
TASK_FEATURES = 6
TINY = 1e-6


@dataclass(frozen=True)
class Task:
    """A support set as numbers.

    Args:
        channels: of all sites, one site after another.
        site: place of each channel's site.
        sign: of the mean along each direction of a core, which has no sign of its own; 1 elsewhere.
        sites: pooled channel features, size, place in the model and role of each site.
        task: ways, shots and what leaving one out says of ridge regression.
    """

    channels: Float[Tensor, "m f"]
    site: Int[Tensor, " m"]
    sign: Float[Tensor, " m"]
    sites: Float[Tensor, "s g"]
    task: Float[Tensor, " h"]


def read_task(
    model: nn.Module, sites: Sequence[Site], moments: Mapping[str, Moments], head: Ridge, images: int
) -> Task:
    """Everything the network reads.

    Args:
        sites: those that have moments.
        head: ridge regression on the features of the model as it is.
        images: in the support set.
    """
    tables = [channel_features(model, site, moments[site.name]) for site in sites]
    rows = []
    for place, (site, table) in enumerate(zip(sites, tables, strict=True)):
        spread = table.std(0, unbiased=False)
        about = [math.log2(site.channels) / 10, place / max(1, len(sites) - 1)]
        about += [float(site.role is role) for role in Role]
        rows.append(torch.cat([table.mean(0), spread, table.new_tensor(about)]))
    sizes = torch.tensor([site.channels for site in sites])
    sign = [
        moments[site.name].mean.sign() if site.role is Role.CORE else torch.ones_like(moments[site.name].mean)
        for site in sites
    ]
    owners = torch.arange(len(sites)).repeat_interleave(sizes).to(tables[0].device)
    task = task_features(head, images, moments).to(tables[0].device)
    return Task(torch.cat(tables), owners, torch.cat(sign), torch.stack(rows), task)


def channel_features(model: nn.Module, site: Site, found: Moments) -> Float[Tensor, "c f"]:
    """Of each channel: mean, spread, class separation, what the norm or bias says now; scale-free per site."""
    module = model.get_submodule(site.module)
    pooled = found.between + found.within
    mean, log_variance = found.mean, (found.variance + TINY).log()
    known = site.role is Role.NORM  # normalised: mean 0 and variance 1 mean something
    if not known:
        mean, log_variance = mean / (found.variance + TINY).sqrt(), log_variance - log_variance.mean()
    if site.role is Role.CORE:
        mean = mean.abs()
    scale, shift = torch.ones_like(mean), torch.zeros_like(mean)
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if known and isinstance(weight, Tensor):
        scale = weight.detach().float().abs() + TINY
    if site.role is not Role.CORE and isinstance(bias, Tensor):
        shift = bias.detach().float() / (scale if known else (found.variance + TINY).sqrt())
    separation = (found.between / (pooled + TINY)).clamp(0, 1)
    rows = (
        mean.clamp(-4, 4) / 2,
        log_variance.clamp(-6, 6) / 3,
        separation,
        separation - separation.mean(),
        (pooled / (found.variance + TINY)).clamp(0, 1),
        (scale.log() - scale.log().mean()).clamp(-4, 4) / 2,
        shift.clamp(-4, 4) / 2,
        (found.within > 0).float(),
    )
    return torch.stack(rows, dim=1)


def task_features(head: Ridge, images: int, moments: Mapping[str, Moments]) -> Float[Tensor, " h"]:
    """The task as a whole."""
    classes = len(head.bias)
    separation = [float((m.between / (m.between + m.within + TINY)).mean()) for m in moments.values()]
    loss = head.loo_loss
    return torch.tensor(
        [
            math.log2(classes) / 5,
            math.log2(images / classes) / 5,
            0.0 if loss is None else min(2.0, loss / math.log(classes)),
            float(loss is None),
            math.log10(head.penalty) / 4,
            sum(separation) / max(1, len(separation)),
        ],
        dtype=torch.float32,  # as the rest of what the network reads, whatever torch's default is
    )
