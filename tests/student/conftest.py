"""A small teacher of timm and a student of it."""

import pytest
import timm
from torch import nn

from hypercompress.student import Student
from tests.student.networks import SMALL, compressed, randomised


@pytest.fixture
def teacher() -> nn.Module:
    return randomised(timm.create_model("test_resnet", pretrained=False, **SMALL))


@pytest.fixture
def student(teacher: nn.Module) -> Student:
    return compressed(teacher)
