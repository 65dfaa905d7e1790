"""A batch that a model is inspected with, in its own precision, and how much of the data one pass may hold."""

from typing import Any

import torch
from torch import Tensor, nn

from hypercompress.architecture import own_input_size
from hypercompress.errors import DataError, ModelError
from hypercompress.running.batches import join, pieces, to_device
from hypercompress.running.calibration import CalibrationSplit
from hypercompress.running.calling import device_of, placed
from hypercompress.running.nested import batch_size, flat
from hypercompress.specs import UNCALLED, ModelSpec

# Samples for inspection, which holds the outputs of all layers at once: so many, or as many as have so many numbers.
INSPECTED, LARGEST_EXAMPLE = 8, 2**19
LARGEST_PASS = 3 * 2**25  # elements of all layers' outputs in one backward pass: with what lies between, about 1 GB


def example_of(teacher: nn.Module, split: CalibrationSplit | None, example: Any, *, as_it_is: bool = False) -> Any:
    """A batch for inspection: the one given, else some calibration samples, else noise of the model's own size.

    Args:
        as_it_is: the one given is not cast, as a function of the user's own reads it.

    Raises:
        DataError: the one given holds no sample. ModelError: it holds no tensor, or there is none and no size known.
    """
    if example is not None:
        if batch_size(example) == 0:
            raise DataError(
                "received an example without a single sample; expected a batch of one or more; pass some images, or "
                "noise of their shape"
            )
        return example if as_it_is else to_device(example, device_of(teacher), dtype_of(teacher))
    if split is not None:
        first = split.statistics[0]
        numbers = sum(value.numel() for value in flat(first) if isinstance(value, Tensor)) / max(1, batch_size(first))
        return next(pieces([first], max(2, min(INSPECTED, round(LARGEST_EXAMPLE / max(1, numbers))))))
    size = own_input_size(teacher)
    if size is None:
        raise ModelError(
            "received a model without pretrained_cfg and no data; expected an example of its input; pass example="
        )
    return placed(torch.randn(2, *size, generator=torch.Generator().manual_seed(0)), teacher)


def dtype_of(teacher: nn.Module) -> torch.dtype | None:
    """Of all its real parameters, in which it must be fed, too; ``None`` if they differ: the model casts by itself."""
    dtypes = {parameter.dtype for parameter in teacher.parameters() if parameter.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else None


def samples_of_a_pass(spec: ModelSpec) -> int:
    """Samples whose outputs of all layers are `LARGEST_PASS` elements at most."""
    return max(1, LARGEST_PASS // max(1, sum(layer.positions * layer.out for layer in spec.layers)))


def wider(split: CalibrationSplit, example: Any, spec: ModelSpec) -> Any:
    """More samples than the example's, as many as a pass takes, where these did not come to all layers: experts, say,
    that a few go to. ``None``: they did, or there are no more.
    """
    if not any(UNCALLED in layer.reason for layer in spec.layers):
        return None
    more = join(split.statistics, max(2, samples_of_a_pass(spec)))
    return more if batch_size(more) > batch_size(example) else None
