"""A model that sees images unlike its own as if they were: its BatchNorms take the moments of these images.

Behind each BatchNorm every channel then has the mean and the variance that the later layers were trained with, whatever
the images are (adaptive batch normalisation, Li et al. 2016, which adapts to a domain so). Students that are made with
noise so are far better than with noise and the plain model (LOG.md, 2026-11-28). They get the model's own moments back.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hypercompress.running.batches import join, layout_of
from hypercompress.running.calling import ForwardFn
from hypercompress.running.copying import copy_of
from hypercompress.running.nested import batch_size, flat
from hypercompress.running.norms import reestimate_norms, remembering_norms

TOGETHER = 128  # samples whose moments are taken together: late layers may see one position of each
LARGEST = 2**25  # elements of a batch that is joined: 222 images of 3 x 224 x 224

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

    The parameters are the model's own, not copied. Norms that no batch reaches, or that stay in evaluation mode
    whatever they are told, keep their moments.

    Raises:
        DataError: no batch of at least two samples.
    """
    copied = copy_of(model, shared=model.parameters())
    reestimate_norms(copied, _together(batches), forward_fn)
    for norm, own in zip(remembering_norms(copied), remembering_norms(model), strict=True):
        seen, kept = norm.num_batches_tracked, dict(own.named_buffers())
        for name, buffer in norm.named_buffers():
            if name == "num_batches_tracked" or (seen is not None and not seen):
                buffer.copy_(kept[name])
    return copied


def _together(batches: Sequence[Any]) -> list[Any]:
    """The batches, those built alike joined to `TOGETHER` samples or as many as have `LARGEST` elements."""
    alike: dict[Any, list[Any]] = {}
    for batch in batches:
        alike.setdefault(layout_of(batch), []).append(batch)
    joined = []
    for group in alike.values():
        samples = sum(map(batch_size, group))
        elements = sum(value.numel() for batch in group for value in flat(batch) if isinstance(value, Tensor))
        most = min(TOGETHER, max(2, LARGEST * samples // max(1, elements)))
        part: list[Any] = []
        for batch in group:
            part.append(batch)
            if sum(map(batch_size, part)) >= most:
                joined.append(part)
                part = []
        joined += [part] if part else []
    return [part[0] if len(part) == 1 else join(part, sum(map(batch_size, part))) for part in joined]


@torch.no_grad()
def put_back(student: nn.Module, own: Moments, used: Moments) -> None:
    """Give a student of the renormalised model the model's own moments, in place.

    The affine map that takes the moments ``used`` to ``own`` carries over those of the student's norms, which are not
    ``used`` itself if they were rebased: with ``s^2 = variance + eps``, ``m + (m_s - m_u) s / s_u`` and
    ``s_s^2 (s / s_u)^2``. What a norm gives for an input so many deviations from the mean stays the same; where that
    would take a variance below 0, the scale takes the rest. Channels where it is not finite get ``own``.
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
        square = (variance.double() + eps) * ratio
        grown = (square - eps).clamp_min(0)
        sound = (carried.to(mean.dtype) + grown.to(mean.dtype)).isfinite()
        mean.copy_(torch.where(sound, carried, own_mean))
        variance.copy_(torch.where(sound, grown, own_variance))
        if isinstance(norm.weight, Tensor):
            rest = ((grown + eps) / square).sqrt()  # 1 but where the variance was cut at 0
            norm.weight.copy_(torch.where(sound & (square < eps), norm.weight * rest, norm.weight.double()))
