"""Images normalised for one model, as another wants them: an affine map of each channel."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hypercompress.data.preprocess import Preprocess
from hypercompress.errors import DataError


def other_normalization(
    model: nn.Module, given: Preprocess, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> Preprocess | None:
    """How the model's own images were normalised, where that is known and differs from ``given``; else ``None``.

    Unknown is what the ``pretrained_cfg`` does not say, and what it says for other channels than those of the images
    (timm's own entry, of a model that was built with other ``in_chans``).

    Args:
        given: of the images at hand.
        mean, std: win over the ``pretrained_cfg``; one value per channel, or one for all.

    Raises:
        DataError: ``mean`` or ``std`` is given, and does not fit or leaves the other unknown.
    """
    try:
        own = Preprocess.of(model, given.input_size, mean, std)
    except DataError:
        if mean is not None or std is not None:
            raise
        return None
    return None if (given.mean, given.std) == (own.mean, own.std) else own


def renormalize_(model: nn.Module, given: Preprocess, own: Preprocess) -> RemovableHandle:
    """From now on the model gets images normalised by ``given`` as ``own`` would have normalised them.

    A hook in front of the model, so that its modules keep their names and its weights stay as they are; images in
    [b, c, h, w] are its first positional argument. Padding inside the model is that of its own training.

    Args:
        model: changed in place; the handle that is returned undoes it.
        given, own: of equal channels; sizes and crops are not looked at.
    """
    mean, std, own_mean, own_std = (
        torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)
        for values in (given.mean, given.std, own.mean, own.std)
    )
    scale, shift = std / own_std, (mean - own_mean) / own_std

    def hook(_model: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        images, *rest = inputs
        return (images * scale.to(images) + shift.to(images), *rest)

    return model.register_forward_pre_hook(hook)
