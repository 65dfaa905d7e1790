"""What is wanted of a student, and refused as soon as the teacher's layers are known: before anything is measured."""

from dataclasses import dataclass

import torch
from torch import nn

from hypercompress.allocation import allocate
from hypercompress.inspection import require_supported
from hypercompress.specs import Budget, ModelSpec, Unit


@dataclass(frozen=True)
class Wanted:
    """What is asked for.

    Args:
        budget: ``None``: any. One of latency is not judged here: what can be had of it is measured.
        strict: no layer may be ``unsupported``.
    """

    budget: Budget | None = None
    strict: bool = False

    def check(self, model: nn.Module, spec: ModelSpec) -> None:
        """Whether it can be had.

        Args:
            model, spec: the teacher, unpacked, and its layers.

        Raises:
            BudgetError: below the least ranks, with the range that can be had. ModelError: layers are unsupported.
        """
        if self.strict:
            require_supported(model, spec)
        if self.budget is not None and self.budget.unit is not Unit.LATENCY:
            flat = {layer.name: torch.ones(layer.full_rank) for layer in spec.candidates}
            inputs = {layer.name: torch.ones(layer.channels) for layer in spec.candidates if layer.projects}
            allocate(spec, flat, self.budget, nats=False, inputs=inputs)
