"""Whether the samples of a batch are the rows of its first tensor: the model's outputs tell."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hypercompress.errors import DataError, warn
from hypercompress.packed.trials import tried
from hypercompress.running.batches import copied, rows_of, to_device
from hypercompress.running.calibration import CalibrationSplit
from hypercompress.running.calling import ForwardFn, call_model
from hypercompress.running.nested import Uncut, batch_size, flat, opened

SOME = 3  # samples that are passed to see


@dataclass(frozen=True)
class Rows:
    """Knows batches that can be cut and joined along the first axis of their first tensor from others: sequences
    ``[time, b, channels]``, graphs and sets of points in one tensor, a table ahead of the samples.

    Args:
        model: any; left as it was.
        forward_fn: how it is run; ``None``: as models mostly are, with the first item of a tuple.
        device, dtype: of its batches.
    """

    model: nn.Module
    forward_fn: ForwardFn | None
    device: torch.device
    dtype: torch.dtype | None

    def known(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The batches, each as an `Uncut` where the first says so.

        Raises:
            DataError: it holds a list of tensors that are one sample each.

        Warns:
            that they are not cut.
        """
        apart: bool | None = None
        for batch in batches:
            if isinstance(batch, Uncut) or batch_size(batch) == 0:
                yield batch
                continue
            apart = self._uncut(batch) if apart is None else apart
            yield Uncut(batch, self._given(batch) or 1) if apart else batch

    def _uncut(self, batch: Any) -> bool | None:
        """``None``: a batch of one row cannot tell."""
        lists, size = set(_lists(batch)), batch_size(batch)
        if lists - {2}:  # a pair is inputs and labels
            given = self._given(batch)
            given = self._given_stacked(batch) if given is None else given
            if given in lists and (given != size or self._given_for(batch, size - 1) != size - 1):
                raise DataError(_told(batch, given))
        apart = self._is_apart(batch, size)
        if not apart and size == 1 and self._given(batch) not in (None, 1):
            return None
        if apart:
            warn(_advice(batch, self._given(batch)))
        return apart

    def _is_apart(self, batch: Any, size: int) -> bool:
        """Whether the outputs have other rows than the first tensor, and not so many for each of these."""
        passed = batch[:1] if self.forward_fn is None and isinstance(batch, (tuple, list)) else batch
        lengths = {len(value) for value in flat(passed) if isinstance(value, Tensor) and value.ndim}
        some = min(size, SOME)
        if len(lengths) == 1 and size > 1 and (given := self._given_for(batch, some)) is not None:
            # Some models drop the axis of a batch of one; some give as many rows as are passed whatever these are.
            fewer = None if given == some == 2 else self._given_for(batch, some - 1)
            if fewer is None and given == some:
                return False
            if fewer is not None:
                return given * (some - 1) != fewer * some
        given = self._given(batch)
        return given is not None and given != size and (given % size > 0 or given in lengths)

    def _given_stacked(self, batch: Any) -> int | None:
        """Rows that the model gives for a list of tensors that it does not take, stacked."""
        items = batch[0] if isinstance(batch, (tuple, list)) and isinstance(batch[0], (tuple, list)) else batch
        if self.forward_fn is not None or len({getattr(item, "shape", None) for item in items}) > 1:
            return None
        return self._given(torch.stack(list(items))) if all(isinstance(item, Tensor) for item in items) else None

    def _given_for(self, batch: Any, samples: int) -> int | None:
        """Rows that the model gives for the first rows of the batch's tensors."""
        return self._given(rows_of(batch, slice(samples))) if samples else None

    def _given(self, batch: Any) -> int | None:
        """Rows that the model gives for a batch; ``None``: it does not take it, which others tell."""
        placed = copied(to_device(batch, self.device, self.dtype))
        output = tried(self.model, placed, self.forward_fn or call_model)
        return len(output) if isinstance(output, Tensor) and output.ndim else None


def uncut(split: CalibrationSplit | None) -> bool:
    """Whether some of its batches are not cut."""
    return split is not None and any(isinstance(batch, Uncut) for batch in split.statistics)


def opening(forward_fn: ForwardFn) -> ForwardFn:
    """The ``forward_fn``, which is given what is in an `Uncut`."""
    return partial(_opening, forward_fn)  # no closure: a plan can be pickled


def _opening(forward_fn: ForwardFn, model: nn.Module, batch: Any) -> Tensor:
    return forward_fn(model, opened(batch))


def _lists(value: Any) -> Iterator[int]:
    """How many tensors are in each of the lists and tuples that hold nothing else."""
    items = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    if items and not isinstance(value, Mapping) and all(isinstance(item, Tensor) for item in items):
        yield len(items)
    for item in items:
        yield from _lists(item)


def _told(batch: Any, samples: int | None) -> str:
    return (
        f"received a batch that holds a list of {samples} tensors (the first is {_first_shape(batch)}), one for each "
        "sample; expected tensors with the samples along their first axis; stack them where the batch is made: "
        "torch.stack in the collate_fn of the loader"
    )


def _advice(batch: Any, samples: int | None) -> str:
    return (
        f"received a batch whose first tensor is {_first_shape(batch)} for a model that gives {samples} rows, so it is "
        "neither cut nor joined (docs/own_models.md, Data loaders); expected samples along the first axis; if they are "
        "along another, move it to the front, and pass forward_fn=lambda model, batch: ... that moves it back"
    )


def _first_shape(batch: Any) -> list[int]:
    return next(list(value.shape) for value in flat(batch) if isinstance(value, Tensor) and value.ndim)
