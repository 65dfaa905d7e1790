"""A model that sees images unlike its own as if they were: its BatchNorms take the moments of these images.

Behind each BatchNorm every channel then has the mean and the variance that the later layers were trained with, whatever
the images are (adaptive batch normalisation, Li et al. 2016, which adapts to a domain so). Of noise, curvature measured
so is close to that of real images where the plain model's is not (LOG.md, 2026-11-28). A student of that model gets the
model's own moments back.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hypercompress.calibration import join
from hypercompress.calling import ForwardFn, batch_size
from hypercompress.copying import copy_of
from hypercompress.norms import reestimate_norms, remembering_norms

TOGETHER = 128  # samples whose moments are taken together: late layers may see one position of each

Moments = Mapping[str, tuple[Float[Tensor, " c"], Float[Tensor, " c"]]]  # mean and variance by dotted path


def moments_of(model: nn.Module) -> Moments:
    """The running moments of every BatchNorm, copied."""
    norms, found = set(remembering_norms(model)), {}
    for name, module in model.named_modules():
        if module in norms:
            mean, variance = module.running_mean, module.running_var
            assert isinstance(mean, Tensor)
            assert isinstance(variance, Tensor)
            found[name] = (mean.clone(), variance.clone())
    return found


def renormalized(model: nn.Module, batches: Sequence[Any], forward_fn: ForwardFn | None = None) -> nn.Module:
    """A copy whose BatchNorms have the moments of ``batches``, each norm those of what the ones before it give.

    The parameters are the model's own, not copied.

    Raises:
        DataError: no batch of at least two samples.
    """
    copied = copy_of(model, shared=model.parameters())
    reestimate_norms(copied, _together(batches), forward_fn)
    return copied


def _together(batches: Sequence[Any]) -> list[Any]:
    """The batches, neighbours joined to `TOGETHER` samples or a few more where they are built alike."""
    found, group = [], list[Any]()
    for batch in batches:
        group.append(batch)
        if sum(map(batch_size, group)) >= TOGETHER:
            found.append(group)
            group = []
    if group:
        found.append(group)
    joined = []
    for group in found:
        count = sum(map(batch_size, group))
        whole = join(group, count)
        joined += [whole] if batch_size(whole) == count else group
    return joined


@torch.no_grad()
def put_back(student: nn.Module, own: Moments, used: Moments) -> None:
    """Give a student of the renormalised model the model's own moments, in place.

    The affine map that takes the moments ``used`` to ``own`` carries over those of the student's norms, which are not
    ``used`` itself if they were estimated anew or rebased: with ``s^2 = variance + eps``, ``m + (m_s - m_u) s / s_u``
    and ``s_s^2 (s / s_u)^2``. What a norm gives for an input so many deviations from the mean stays the same. Channels
    where that is not finite stay as they are.
    """
    for name, norm in student.named_modules():
        if name not in own or name not in used:
            continue
        mean, variance, eps = norm.running_mean, norm.running_var, float(norm.eps)
        assert isinstance(mean, Tensor)
        assert isinstance(variance, Tensor)
        (own_mean, own_variance), (used_mean, used_variance) = (
            [moment.double() for moment in moments[name]] for moments in (own, used)
        )
        ratio = (own_variance + eps) / (used_variance + eps)
        carried = own_mean + (mean.double() - used_mean) * ratio.sqrt()
        grown = ((variance.double() + eps) * ratio - eps).clamp_min(0)
        sound = (carried.to(mean) + grown.to(mean)).isfinite()
        mean.copy_(torch.where(sound, carried.to(mean), mean))
        variance.copy_(torch.where(sound, grown.to(variance), variance))
