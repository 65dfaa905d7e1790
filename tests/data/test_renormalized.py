"""A model in front of which images are renormalised sees what its own preparation would have given it."""

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from hypercompress.data import Preprocess, other_normalization, renormalize_
from hypercompress.errors import DataError

GIVEN = Preprocess((3, 8, 8), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
OWN = Preprocess((3, 8, 8), (0.1, 0.2, 0.3), (1.0, 0.25, 0.6))


class Known(nn.Identity):
    def __init__(self, cfg: dict[str, object] | None) -> None:
        super().__init__()
        self.pretrained_cfg = cfg


def cfg(preprocess: Preprocess) -> dict[str, object]:
    return {name: getattr(preprocess, name) for name in ("input_size", "mean", "std")}


def test_images_are_those_of_the_models_own_preparation() -> None:
    image = Image.effect_noise((8, 8), 80).convert("RGB")
    given, own = (preprocess.transform()(image)[None] for preprocess in (GIVEN, OWN))
    model = nn.Identity()
    handle = renormalize_(model, GIVEN, OWN)
    seen: Tensor = model(given)
    torch.testing.assert_close(seen, own, rtol=1e-5, atol=1e-5)
    assert model(given.double()).dtype == torch.float64
    handle.remove()
    assert torch.equal(model(given), given)


def test_what_is_known_and_differs() -> None:
    assert other_normalization(Known(cfg(OWN)), GIVEN) == OWN
    assert other_normalization(Known(cfg(GIVEN)), GIVEN) is None
    assert other_normalization(Known(None), GIVEN) is None
    grey = Preprocess((1, 8, 8), (0.5,), (0.5,))
    assert other_normalization(Known(cfg(OWN)), grey) is None  # three values say nothing of one channel
    found = other_normalization(Known(cfg(OWN)), grey, mean=(0.3,), std=(0.4,))
    assert found is not None
    assert (found.mean, found.std) == ((0.3,), (0.4,))
    assert other_normalization(Known(None), GIVEN, mean=(0.5,), std=(0.5,)) is None


def test_what_is_given_must_fit() -> None:
    with pytest.raises(DataError, match="received 2 mean values"):
        other_normalization(Known(cfg(OWN)), GIVEN, mean=(0.3, 0.4))
    with pytest.raises(DataError, match="received a model without std"):
        other_normalization(Known(None), GIVEN, mean=(0.3,))
