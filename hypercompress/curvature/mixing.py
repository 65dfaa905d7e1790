"""The statistics of two sets of images as those of both together."""

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from hypercompress.specs import Curvature, Sketch


def mixed(mine: Mapping[str, Sketch], others: Mapping[str, Sketch], share: float) -> dict[str, Sketch]:
    """The sketches with the curvature of both sets.

    Args:
        mine: of a model, by layer.
        others: of the same layers; a layer that is missing, or has no curvature, keeps what ``mine`` say of it.
        share: weight of ``others``, in [0, 1]: their share of all images.
    """

    def one(name: str, sketch: Sketch) -> Sketch:
        other = others[name].curvature if name in others else None
        if sketch.curvature is None or other is None:
            return sketch
        return replace(sketch, curvature=_mixed(sketch.curvature, other, share))

    return {name: one(name, sketch) for name, sketch in mine.items()}


def _mixed(mine: Curvature, other: Curvature, share: float) -> Curvature:
    """Moments add up; what depends on the weights alone is the same in both."""

    def mix(a: Tensor, b: Tensor) -> Tensor:
        return a.lerp(b.to(a), share)

    inputs, columns = mine.inputs, mine.columns
    if inputs is not None and other.inputs is not None:
        inputs = _mixed(inputs, other.inputs, share)
    if columns is not None and other.columns is not None:
        columns = mix(columns, other.columns)
    return replace(
        mine,
        signal=mix(mine.signal, other.signal),
        fisher=mix(mine.fisher, other.fisher),
        mean=mix(mine.mean, other.mean),
        inputs=inputs,
        columns=columns,
    )
