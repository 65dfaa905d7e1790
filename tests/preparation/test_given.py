"""What is no generator, no number of samples and no type to compute in is refused before anything runs."""

from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hypercompress.compress import compress
from hypercompress.curvature import measure
from hypercompress.errors import BenchmarkError, DataError, GeneratorError, ModelError
from hypercompress.generator import ANALYTIC, AnalyticGenerator
from hypercompress.inspection import inspect
from hypercompress.preparation import prepare
from hypercompress.preparation.given import require_generator, require_samples
from hypercompress.running.calibration import require_batches
from hypercompress.specs import Budget
from tests.small_models import batches, network

HALF = Budget(params=0.5)
EIGHT = (torch.float8_e4m3fn, torch.float8_e5m2)


@pytest.mark.parametrize(("generator", "said"), [(None, "None"), (5, "5"), (AnalyticGenerator, "<class .*>")])
def test_what_is_no_generator(generator: Any, said: str) -> None:
    with pytest.raises(GeneratorError, match=rf"received {said} as the generator; expected one of auto, .*; pass 'aut"):
        require_generator(generator)  # not `compress`: the tests' type checks would come first
    for one in ("kfac", Path("folder"), ANALYTIC["svd"]):
        require_generator(one)


@pytest.mark.parametrize("count", [0, -1, 2.5, "4"])
def test_what_is_no_number_of_samples(count: Any) -> None:
    with pytest.raises(BenchmarkError, match=rf"received latency_batch={count!r}; expected a whole number from 1, the"):
        require_samples(count)
    require_samples(3)
    require_samples(None)


@pytest.mark.parametrize("options", [{"fast": True}, {}])
def test_the_facade_refuses_a_batch_without_samples(options: dict[str, bool]) -> None:
    budget = HALF if options else Budget(latency=0.5)
    with pytest.raises(BenchmarkError, match="received latency_batch=0"):
        compress(network(), budget, batches(), latency_batch=0, **options)


@pytest.mark.parametrize("data", [5, 0.5, object()])
def test_data_that_hold_no_batches(data: Any) -> None:
    with pytest.raises(DataError, match=r"received .* as calibration data; expected batches; pass a loader or a list"):
        require_batches(data)


@pytest.mark.parametrize("forward_fn", [None, lambda model, batch: model(batch)])
def test_an_example_without_a_sample(forward_fn: Any) -> None:
    for generator in ("svd", "auto"):
        with pytest.raises(DataError, match="received an example without a single sample; expected a batch of one or"):
            compress(network(), HALF, None, generator, example=batches()[0][:0], forward_fn=forward_fn)


@pytest.mark.parametrize("dtype", EIGHT)
@pytest.mark.parametrize("options", [{}, {"data": batches(), "renormalize": True}])
def test_layers_of_eight_bits(dtype: torch.dtype, options: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=rf"received a model whose \S+ is of {dtype}; expected .*16 bits or more"):
        compress(network().to(dtype), HALF, example=batches()[0], **options)


class Eight(nn.Module):
    """A layer of a class of its own, which makes ordinary numbers of those of eight bits."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(64, 32).mul(0.1).to(dtype), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.to(x.dtype).mT


@pytest.mark.parametrize("dtype", EIGHT)
def test_a_class_that_reads_eight_bits_by_itself_stays_as_it_is(dtype: torch.dtype) -> None:
    model = nn.Sequential(Eight(dtype), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)).eval()
    student = compress(model, Budget(params=0.7), example=torch.randn(8, 32), generator="svd")
    assert student.ranks.keys() == {"1"}
    assert student.get_parameter("model.0.weight").dtype == dtype


@pytest.mark.parametrize("images", [0, 2.5, "all"])
def test_what_is_no_number_of_images(images: Any) -> None:
    with pytest.raises(GeneratorError, match=rf"received images={images!r}; expected a whole number from 1"):
        compress(network(), HALF, batches(), images=images)


def test_so_many_images_of_a_loader_are_read() -> None:
    """By default 1,024, so that one that never ends does."""
    teacher, endless = network(), (batch for _ in count() for batch in batches())
    assert compress(teacher, HALF, endless).ranks
    some, few = (prepare(teacher, iter(batches(9)), "kfac", images=images).split for images in (None, 24))
    assert some is not None
    assert few is not None
    assert (some.samples, few.samples) == (6 * 6, 2 * 6)
    labelled = ((batch, torch.zeros(len(batch), dtype=torch.int64)) for batch in batches(9))
    with pytest.warns(UserWarning, match="labels 0 alone") as told:
        compress(teacher, HALF, labelled, images=24)
    assert told[0].filename == __file__


@pytest.mark.parametrize("seed", [None, 0.5, "0", 2**70])
def test_what_is_no_seed_leaves_the_teacher_alone(seed: Any) -> None:
    teacher = network()
    for call in (
        lambda: compress(teacher, HALF, batches(), seed=seed),
        lambda: prepare(teacher, batches(), "kfac", seed=seed),
    ):
        with pytest.raises(GeneratorError, match=rf"received seed={seed!r}; expected a whole number"):
            call()
    assert not any(module._forward_hooks for module in teacher.modules())


def test_a_seed_of_numpy_is_a_seed() -> None:
    one, other = (compress(network(), HALF, batches(), seed=seed) for seed in (np.int64(3), 3))
    assert one.ranks == other.ranks


def test_no_hook_stays_where_gradients_cannot_be_drawn() -> None:
    teacher = network()
    spec = inspect(teacher, batches()[0])
    with pytest.raises(TypeError):
        measure(teacher, spec, batches(), seed="0")  # type: ignore[arg-type]
    assert not any(module._forward_hooks for module in teacher.modules())
