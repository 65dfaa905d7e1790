"""The random states that training draws from: Python's, and torch's of the CPU and of this process's GPU."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def random_states() -> dict[str, Any]:
    """The states as they are, as data that torch reads back with ``weights_only=True``."""
    states = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def generator_at(*place: int) -> torch.Generator:
    """What it draws follows from the place alone, such as a seed, a rank and a step."""
    return torch.Generator().manual_seed(hash(place) % 2**63)


def set_random_states(states: dict[str, Any]) -> None:
    """Go on from ``random_states()``. A GPU's state is passed over where there is none."""
    random.setstate(states["python"])
    torch.set_rng_state(states["torch"].cpu())
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """The states of the CPU, and of a GPU that is named, follow from ``seed`` in the block, and are what they were
    afterwards.
    """
    gpu = device if device is not None and device.type == "cuda" else None
    python, cpu = random.getstate(), torch.get_rng_state()
    cuda = None if gpu is None else torch.cuda.get_rng_state(gpu)
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        if gpu is not None:
            with torch.cuda.device(gpu):
                torch.cuda.manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        torch.set_rng_state(cpu)
        if gpu is not None and cuda is not None:
            torch.cuda.set_rng_state(cuda, gpu)
