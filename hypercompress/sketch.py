"""Everything a generator may read of a teacher: weights, norm statistics and, with data, curvature."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hypercompress.curvature import measure
from hypercompress.curvature.fisher import Probing
from hypercompress.kinds import known_kind
from hypercompress.running.calling import ForwardFn, Progress
from hypercompress.specs import ModelSpec, NormStatistics, Sketch


def norm_statistics(module: nn.Module) -> NormStatistics | None:
    """Scale, shift and running moments of a norm layer; ``None`` if it has no scale to read."""
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    if not isinstance(weight, Tensor) or weight.ndim != 1:
        return None
    weight = weight.detach()
    bias = bias.detach() if isinstance(bias, Tensor) else torch.zeros_like(weight)
    mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    eps = float(getattr(module, "eps", None) or 0.0)
    if isinstance(mean, Tensor) and isinstance(variance, Tensor):
        return NormStatistics(weight, bias, mean.detach(), variance.detach(), eps, moments=True)
    return NormStatistics(weight, bias, torch.zeros_like(weight), torch.ones_like(weight), eps, moments=False)


def sketch(
    model: nn.Module,
    spec: ModelSpec,
    batches: Iterable[Any] | None,
    *,
    forward_fn: ForwardFn | None = None,
    probing: Probing | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Sketch]:
    """Sketch of every candidate layer; ``batches=None`` is the data-free mode.

    Args:
        probing: how gradients are drawn; ``None``: one of each sample.

    Raises:
        DataError, NonFiniteError: as `curvature.measure`.
    """
    modules = dict(model.named_modules())
    curvatures = {}
    if batches is not None:
        curvatures = measure(model, spec, batches, forward_fn=forward_fn, probing=probing, seed=seed, progress=progress)

    def statistics(name: str | None) -> NormStatistics | None:
        return None if name is None else norm_statistics(modules[name])

    sketches = {}
    for layer in spec.candidates:
        module = modules[layer.name]
        kind, bias = known_kind(module), getattr(module, "bias", None)
        sketches[layer.name] = Sketch(
            kind.matrix(module),
            bias.detach() if isinstance(bias, Tensor) else None,
            curvatures.get(layer.name),
            statistics(layer.follower),
            statistics(layer.feeder),
        )
    return sketches
