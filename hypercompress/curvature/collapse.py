"""What the classifier reads, where too few images were measured to know: features along its own rows.

Of fewer images than the classifier has directions the second moment of its inputs has no more directions than there
were images; every other looks free, and budgets are met there. Noise moves pooled features little, and says less still.
But in a trained network the features of a class lie along its row of the classifier (neural collapse: Papyan, Han and
Donoho 2020, PNAS 117:24652), so that about their mean ``S ~ W^T W``. A share of the variance is put there (LOG.md,
2026-11-28). The classifier is the layer whose output, untouched, is the model's, if that is read as logits
(`running/outputs.py`); a convolution that is flattened afterwards is none.
"""

from collections.abc import Mapping
from dataclasses import replace

from hypercompress.factorize import damped, squared, traces
from hypercompress.specs import Curvature, ModelSpec, Side, Sketch

SHARE = 0.1  # of the variance, of images of the model's own kind
SHARE_UNLIKE = 0.5  # of noise, and of images that the BatchNorms are renormalised to


def completed(spec: ModelSpec, sketches: Mapping[str, Sketch], samples: int, *, unlike: bool) -> dict[str, Sketch]:
    """The sketches with that of the layer that gives the logits completed, if it saw fewer rows than it has directions.

    Args:
        samples: that were measured.
        unlike: they are of another kind than the model's own images, and known to be.
    """
    found, share = dict(sketches), SHARE_UNLIKE if unlike else SHARE
    for layer in spec.candidates:
        curvature = found[layer.name].curvature
        if curvature is not None and curvature.logits and samples * layer.positions < layer.full_rank:
            found[layer.name] = replace(found[layer.name], curvature=_along_classes(curvature, share))
    return found


def _along_classes(curvature: Curvature, share: float) -> Curvature:
    """The curvature with a share of the input's variance along the rows of the weight; mean and total stay."""
    signal, gram, origin = (t.double() for t in (curvature.signal, curvature.gram, squared(curvature.mean)))
    along = gram @ gram if curvature.side is Side.OUTPUT else gram  # W (W^T W) W^T, or W^T W itself
    if not bool(traces(along) > 0):
        return curvature
    completed_signal = origin + damped((1 - share) * (signal - origin), along, share / (1 - share))
    return replace(curvature, signal=completed_signal.to(curvature.signal))
