"""What a whole process shares is switched by one thread at a time: torch's random state, its fused layers, warnings."""

import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


class _Alone:
    """A lock that the thread which holds it may take again. A process forked meanwhile by another thread has it anew:
    whoever holds it is not there, and would never give it back.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def forked(self) -> None:
        """Called in the new process, by its only thread."""
        if self.lock.acquire(blocking=False):  # free, or of this very thread
            self.lock.release()
        else:
            self.lock = threading.RLock()

    def __enter__(self) -> bool:
        return self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        self.lock.release()


ALONE = _Alone()  # held while something of the process is not as its other threads expect it


def alone(function: Callable[P, R]) -> Callable[P, R]:
    """Let the function run in one thread at a time, and out of inference mode, as gradients are taken in it.

    Another thread that calls this or another function so marked waits. Whatever else runs the same model meanwhile is
    not kept away: it would find the model in evaluation mode, or with hooks.
    """

    @functools.wraps(function)
    def run(*args: P.args, **named: P.kwargs) -> R:
        with ALONE, torch.inference_mode(False):
            return function(*args, **named)

    return run


@contextmanager
def drawing(devices: Iterable[torch.device] = ()) -> Iterator[None]:
    """What is drawn inside the block, by one thread at a time, leaves torch's random state as it was.

    Args:
        devices: GPUs whose state is kept too.
    """
    with ALONE, torch.random.fork_rng(devices=list(devices)):
        yield


class _Unfused:
    """torch's fused transformer layers are off while any thread is inside a block, and then as they were before."""

    def __init__(self) -> None:
        self.lock, self.inside, self.before = threading.Lock(), 0, True

    def forked(self) -> None:
        """Called in a new process, in which no other thread is in the middle of switching."""
        self.lock = threading.Lock()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self.lock:
            if self.inside == 0:
                self.before = torch.backends.mha.get_fastpath_enabled()
            torch.backends.mha.set_fastpath_enabled(False)
            self.inside += 1
        try:
            yield
        finally:
            with self.lock:
                self.inside -= 1
                if self.inside == 0:
                    torch.backends.mha.set_fastpath_enabled(self.before)


unfused = _Unfused()

if hasattr(os, "register_at_fork"):  # Windows does not fork
    os.register_at_fork(after_in_child=ALONE.forked)
    os.register_at_fork(after_in_child=unfused.forked)
