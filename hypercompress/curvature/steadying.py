"""Statistics of few images, steadied by those of noise.

The second moments of some tens of images are noisy themselves. To shrink them towards a multiple of one (Ledoit and
Wolf 2004) would forget the network. Those of 1/f noise, to which the model's BatchNorms are renormalised
(`running/renormalization.py`), are a guess that needs no images, and that images then correct (LOG.md, 2026-11-28).
"""

from collections.abc import Mapping

from hypercompress.curvature.mixing import mixed
from hypercompress.specs import Sketch

COUNTS_AS = 8.0  # images that the noise weighs as much as
# Images up to which that is mostly worth it. With all of them in the student in the end KL falls at 32 and
# is level at 64, where agreement fell (93.1 to 90.2 % on three networks); with 1,000 classes 16 (LOG.md).
FEW, FEW_OF_MANY = 32, 16
MANY = 200  # classes; between those ten and these 1,000 nothing was measured, and the bar is a guess


def few(classes: int) -> int:
    """Images up to which noise is mostly worth it, for a model of so many classes."""
    return FEW_OF_MANY if classes >= MANY else FEW


def noise_share(samples: int) -> float:
    """The weight of the noise's statistics beside those of so many images."""
    return COUNTS_AS / (samples + COUNTS_AS)


def steadied(images: Mapping[str, Sketch], noise: Mapping[str, Sketch], samples: int) -> dict[str, Sketch]:
    """The sketches of images with the curvature of both.

    Args:
        images: of the model, by layer.
        noise: of the same layers of the renormalised model; a layer that is missing keeps what images say of it.
        samples: images that were measured.
    """
    return mixed(images, noise, noise_share(samples))
