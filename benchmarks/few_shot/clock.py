"""Seconds, once a card has done what it was asked to do."""

import time

import torch


def now(device: torch.device) -> float:
    """The clock after all work on the device is done; on a CPU it always is."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
