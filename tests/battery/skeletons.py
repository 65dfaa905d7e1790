"""The promises that need no name of timm's, for what any function makes: back from disk by way of a skeleton."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hypercompress.compress import compress
from hypercompress.packed.unpacking import unpack
from hypercompress.running.calling import call_model
from hypercompress.specs import Budget
from hypercompress.student import Student, from_pretrained
from tests.battery.gradients import learning, unreached

Maker = Callable[[], nn.Module]


def check(make: Maker, batch: Any, folder: Path, *, budget: Budget, **options: Any) -> tuple[nn.Module, Student]:
    """Compress what ``make`` makes and assert every promise of the contract that needs no name."""
    torch.manual_seed(0)
    teacher = make().eval()
    before, size = copy.deepcopy(teacher.state_dict()), sum(p.numel() for p in teacher.parameters())
    student = compress(teacher, budget, example=batch, **options)
    assert student.ranks
    assert sum(p.numel() for p in student.parameters()) <= budget.share * size
    with torch.no_grad():
        wanted = call_model(student, batch)
        assert wanted.shape == call_model(teacher, batch).shape
    assert wanted.isfinite().all()
    student.save_pretrained(folder / "student")
    torch.manual_seed(1)  # the skeleton's own weights must not matter
    loaded = from_pretrained(folder / "student", skeleton=make())
    with torch.no_grad():
        assert torch.equal(call_model(loaded, batch), wanted)
    taught = unpack(teacher)
    assert unreached(loaded.model, taught, batch, learning(taught, batch)) == []
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    return teacher, student


def images(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
