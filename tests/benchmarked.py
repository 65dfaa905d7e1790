"""Settings, images and rows that tests of the benchmark share."""

import torch
from torch import Tensor

CONTRACT = {"batch_size", "threads", "device", "teacher_ms", "student_ms", "speedup", "macs_ratio"}


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32)
