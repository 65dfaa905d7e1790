"""What a whole process shares is switched by one thread at a time: torch's random state, its fused layers, warnings."""

import functools
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")

ALONE = threading.RLock()  # held while something of the process is not as its other threads expect it


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
