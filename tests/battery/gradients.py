"""Which parameters learn: those of a student wherever the teacher's do."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hypercompress.kinds import LowRank
from hypercompress.packed.projection import SplitProjection
from hypercompress.running.calling import call_model

BRIGHTNESS = (1.0, 10.0, 0.1, -1.0, -10.0)  # of the images, tried in turn where no gradient gets through


def varied(batch: Any, factor: float, dtype: torch.dtype) -> Any:
    """The batch with its images so many times as bright; token ids and masks stay."""
    if isinstance(batch, dict):
        return {key: varied(value, factor, dtype) for key, value in batch.items()}
    return factor * batch.to(dtype) if batch.is_floating_point() else batch


def gradients(
    model: nn.Module, batch: Any, *, factor: float = 1.0, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor | None]:
    """What one backward pass in evaluation mode leaves at each parameter of a copy, under each of its names."""
    model = copy.deepcopy(model).to(dtype)
    model.train()  # drops what some models keep from an earlier evaluation pass (LeViT's attention biases)
    model.eval()
    call_model(model, varied(batch, factor, dtype)).square().sum().backward()
    return {name: p.grad for name, p in model.named_parameters(remove_duplicate=False)}


def finite(found: Mapping[str, Tensor | None]) -> set[str]:
    """The names that have a gradient, and a finite one."""
    return {name for name, gradient in found.items() if gradient is not None and gradient.isfinite().all()}


def learning(model: nn.Module, batch: Any) -> set[str]:
    """Parameters with a gradient that is finite and not zero but for rounding.

    Some gradients are zero by mathematics, as those of the biases of keys, which softmax takes out, and in float32 come
    out as noise. In float64 such noise is below the unit of rounding of the largest gradient (at most 1.3e-17 of it in
    the smallest models of timm's modules), and what is no noise is above (at least 9e-15).
    """
    found = gradients(model, batch, dtype=torch.float64)
    largest = {name: float(gradient.abs().max()) for name, gradient in found.items() if gradient is not None}
    floor = torch.finfo(torch.float64).eps * max(largest.values())
    return {name for name, size in largest.items() if size > floor} & finite(gradients(model, batch))


def places(name: str, factored: Iterable[str], teacher: nn.Module) -> list[str]:
    """The teacher's parameters that one of the student's is in place of: for a factor the one of its layer; for a fused
    projection that is together again, as nothing of it is factored, those of its three parts.
    """
    layer = next((path for path in factored if name.startswith(f"{path}.")), None)
    parent, _, leaf = name.rpartition(".")
    if layer is not None:
        return [f"{layer}.{leaf}"]
    if isinstance(teacher.get_submodule(parent), SplitProjection):
        return [f"{parent}.{part}.{leaf}" for part in "qkv"]
    return [name]


def unreached(student: nn.Module, teacher: nn.Module, batch: Any, wanted: set[str]) -> list[str]:
    """Parameters of the student (each factor is one) whose gradient is missing, not finite or zero all over, though
    that of the teacher's in the same place is ``wanted``.

    A ReLU that is off at every position of the images hides what lies before it, and need not be off in the teacher. So
    a zero only counts if it is one for images of another brightness too.
    """
    factored = [name for name, module in student.named_modules(remove_duplicate=False) if isinstance(module, LowRank)]
    missing = {name for name, _ in student.named_parameters(remove_duplicate=False)}
    for factor in BRIGHTNESS:
        found = gradients(student, batch, factor=factor)
        parts = {name: places(name, factored, teacher) for name in found}
        needed = {name for name in found if not wanted.isdisjoint(parts[name])}
        if broken := needed - finite(found):
            return sorted(broken)
        missing &= {name for name in needed if zero_somewhere(found[name], parts[name], wanted)}
        if not missing:
            break
    return sorted(missing)


def zero_somewhere(gradient: Tensor | None, parts: list[str], wanted: set[str]) -> bool:
    """Whether a part of the gradient that is ``wanted`` is zero all over."""
    assert gradient is not None
    chunks = zip(parts, gradient.chunk(len(parts)), strict=True)
    return any(part in wanted and not values.any() for part, values in chunks)
