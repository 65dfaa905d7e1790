"""A backbone, images and an episode small enough for seconds."""

import pytest
import torch

from benchmarks.few_shot.backbones import Backbone
from benchmarks.few_shot.passes import last_layer
from benchmarks.few_shot.trial import Trial
from hypercompress.data import Pool
from tests.benchmarks.transfer.made import made


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone("tiny", made("test_resnet"), "abc", {"made": "made"}, "other")


@pytest.fixture(scope="module")
def pool() -> Pool:
    """Six classes of 20 images: a pattern of each class under noise."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.randn(6, 1, 32, 32, generator=generator)
    labels = torch.arange(6).repeat(20)
    return Pool("made", patterns[labels] + 2 * torch.randn(120, 1, 32, 32, generator=generator), labels)


@pytest.fixture
def trial(backbone: Backbone, pool: Pool) -> Trial:
    return Trial(backbone, "made", pool, last_layer(backbone.model, pool.images[:2]))
