"""Which tensors lie in the same memory: one storage is not one weight, and parts that overlap are. Freed memory."""

import ctypes
import math
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hypercompress import Budget, compress
from hypercompress.inspection import inspect
from hypercompress.report import bytes_of
from hypercompress.running.memory import CHOSEN, finite, give_back, keep_freed, overlapping


def test_one_storage_is_not_one_weight() -> None:
    """torch.nn.utils.vector_to_parameters leaves every parameter as a part of one vector."""
    model = nn.Sequential(nn.Linear(12, 20), nn.Conv1d(1, 4, 3), nn.Flatten(), nn.Linear(72, 5))
    model.insert(1, nn.Unflatten(1, (1, 20)))
    model.double().eval()
    expected, size = inspect(model, torch.randn(2, 12, dtype=torch.float64)), bytes_of(model)
    vector = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(vector, model.parameters())
    assert len({p.untyped_storage().data_ptr() for p in model.parameters()}) == 1
    spec = inspect(model, torch.randn(2, 12, dtype=torch.float64))
    assert spec == expected
    assert len(spec.candidates) == 3
    assert bytes_of(model) == size
    student = compress(model, Budget(params=0.6), generator="svd", example=torch.randn(2, 12, dtype=torch.float64))
    assert sum(p.numel() for p in student.parameters()) == student.report["student"]["params"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("place", [0, 7, 23])
def test_numbers_are_finite_or_not(dtype: torch.dtype, place: int) -> None:
    numbers = torch.linspace(-3, 3, 24, dtype=dtype).reshape(2, 3, 4)
    assert finite(numbers)
    assert finite(numbers.mT)
    assert finite(numbers[:0])
    assert finite(torch.full((3,), torch.finfo(dtype).max, dtype=dtype))
    for bad in (math.nan, math.inf, -math.inf):
        broken = numbers.clone()
        broken.view(-1)[place] = bad
        assert not finite(broken)


@pytest.mark.skipif(sys.platform != "linux", reason="no /proc")
def test_complex_numbers_are_finite_in_both_parts() -> None:
    numbers = torch.ones(3, dtype=torch.complex64)
    assert finite(numbers)
    for broken in (complex(math.nan, 0), complex(0, math.inf)):
        assert not finite(torch.tensor([1, broken]))


def test_freed_memory_is_given_back() -> None:
    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20

    torch.empty(2**25 // 4 - 2**12).fill_(1.0)  # just below 32 MiB: from now on glibc keeps what is smaller
    blocks, ends = [], []
    for _ in range(256):  # 512 MiB, between small ones that stay
        blocks.append(torch.ones(2**21 // 4))
        ends.append(torch.ones(8))
    held = resident()
    del blocks
    give_back()
    assert resident() < held - 400
    assert len(ends) == 256


RESIDENT = """
import os, torch
from pathlib import Path
from hypercompress.running.memory import give_back, keep_freed

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20

def make_and_free():
    torch.ones(2**26)  # 256 MiB in one block

make_and_free()
before = resident()
assert keep_freed()
make_and_free()
print(resident() - before)
give_back()
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc")
def test_freed_memory_is_kept_until_it_is_given_back() -> None:
    """In a process of its own, because what the allocator was told holds to the end."""
    others = {name: value for name, value in os.environ.items() if name not in CHOSEN}
    command = [sys.executable, "-c", RESIDENT]
    printed = subprocess.run(command, env=others, capture_output=True, text=True, check=True).stdout
    kept, after = map(float, printed.split())
    assert kept > 200
    assert after < 50


@pytest.mark.parametrize("name", CHOSEN)
def test_what_the_environment_says_of_the_allocator_is_left_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "100000")
    monkeypatch.setattr(ctypes, "CDLL", None)  # what is not asked cannot be called
    assert not keep_freed()


def test_parts_that_overlap_are_one() -> None:
    vector = torch.randn(12)
    whole, first, last, view = (nn.Parameter(t) for t in (vector, vector[:4], vector[4:], vector.view(3, 4).T))
    assert len(set(overlapping([first, last]).values())) == 2
    assert len(set(overlapping([first, last, whole]).values())) == 1
    assert len(set(overlapping([view, last]).values())) == 1
    apart = overlapping([nn.Parameter(torch.empty(3, device="meta")) for _ in range(2)])
    assert len(set(apart.values())) == 2
