"""Several threads of a process: each gets what it would get alone, and what they share is as it was."""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hypercompress import Budget, Student, adapt, compress, from_pretrained
from hypercompress.alone import ALONE, drawing, unfused
from hypercompress.running.calling import evaluating
from tests.small_models import batches, network
from tests.transfer.models import model_of

THREADS = 3


@pytest.fixture(autouse=True)
def fused() -> Iterator[None]:
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def together(call: Callable[[], Any]) -> list[Any]:
    """What so many threads get that call at once; what one raises is raised."""
    found, ready = list[Any](), threading.Barrier(THREADS)

    def run() -> None:
        ready.wait()
        try:
            found.append(call())
        except BaseException as error:  # noqa: BLE001  (a thread would lose it)
            found.append(error)

    threads = [threading.Thread(target=run) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in found:
        if isinstance(one, BaseException):
            raise one
    return found


def equal(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(value, other.state_dict()[key]) for key, value in one.state_dict().items())


def moved(model: nn.Module) -> Student:
    x = torch.randn(9, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    return adapt(model, x, torch.arange(9) % 3, network="none", views=0, steps=2, rate=1e-4)


@pytest.mark.parametrize("work", ["compress", "adapt", "load"])
def test_threads_share_a_teacher(work: str, tmp_path: Path) -> None:
    teacher = network() if work == "compress" else model_of()
    if work == "load":
        compress(teacher, Budget(params=0.6), generator="svd").save_pretrained(tmp_path / "s")
    calls: dict[str, Callable[[], Student]] = {
        "compress": lambda: compress(teacher, Budget(params=0.5), batches()),
        "adapt": lambda: moved(teacher),
        "load": lambda: from_pretrained(tmp_path / "s"),
    }
    wanted, before, state = (
        calls[work](),
        {k: v.clone() for k, v in teacher.state_dict().items()},
        torch.get_rng_state(),
    )
    assert all(equal(got, wanted) for got in together(calls[work]))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.backends.mha.get_fastpath_enabled()
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert not any(module._forward_hooks for module in teacher.modules())


def test_one_waits_for_another() -> None:
    with drawing():
        free = threading.Event()
        thread = threading.Thread(target=lambda: free.set() if ALONE.lock.acquire(timeout=0.05) else None)
        thread.start()
        thread.join()
        assert not free.is_set()
        compress(network(), Budget(params=0.5), batches(), "svd")  # this thread need not


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("own", [False, True])
def test_a_process_forked_meanwhile_need_not_wait(own: bool) -> None:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with drawing():
            held.set()
            done.wait()

    def forked() -> int:
        child = os.fork()
        if child == 0:
            free = ALONE.lock.acquire(timeout=5)
            os._exit(0 if free else 1)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    if own:  # as a worker of a loader that compress reads
        with ALONE:
            assert forked() == 0
    else:
        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        assert forked() == 0
        done.set()
        thread.join()
    with ALONE:  # the lock of this process is as it was
        pass


@pytest.mark.parametrize("enabled", [True, False])
def test_fused_layers_are_as_they_were_however_blocks_end(enabled: bool) -> None:
    """As of two threads that each evaluate a model: the first that began may be the first that ends."""
    torch.backends.mha.set_fastpath_enabled(enabled)
    with ExitStack() as first, ExitStack() as second:
        first.enter_context(evaluating(network()))
        second.enter_context(evaluating(network()))
        first.close()
        assert not torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mha.get_fastpath_enabled() is enabled
    with unfused():
        assert not torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mha.get_fastpath_enabled() is enabled
