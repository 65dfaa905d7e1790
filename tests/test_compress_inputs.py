"""What the facade is given: models that are none, batches with tensors for all samples, ways to call a model."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypercompress.compress import compress
from hypercompress.errors import DataError, ModelError
from hypercompress.running.copying import require_module
from hypercompress.specs import Budget
from hypercompress.student import Student
from tests.small_models import Experts, batches, network

HALF = Budget(params=0.5)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def same(one: Student, other: Student) -> bool:
    """Whether both hold the same numbers."""
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(v, states[1][n]) for n, v in states[0].items())


@pytest.mark.parametrize(
    ("model", "words"),
    [("resnet18", "'resnet18'"), (nn.Linear, "the class Linear"), (None, "a NoneType"), ({}, "a dict")],
)
def test_what_is_no_model(model: Any, words: str) -> None:
    with pytest.raises(ModelError, match=rf"received {words} as the model; expected an nn.Module; build it first"):
        require_module(model)  # not `compress` or `adapt`: the tests' type checks would come first


def test_images_and_labels_that_are_not_wrapped() -> None:
    images = torch.cat(batches())
    with pytest.raises(DataError, match=r"wrap it: data=\[\(images, labels\)\]"):
        compress(network(), HALF, (images, torch.zeros(len(images)).long()))
    assert compress(network(), HALF, [(images, torch.zeros(len(images)).long())]).ranks


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_an_example_is_cast_to_the_model_s_type(dtype: torch.dtype) -> None:
    model, example = network().to(dtype), batches()[0]
    for data in (None, batches()):
        got = compress(model, HALF, data, "svd" if data is None else "kfac", example=example)
        assert same(got, compress(model, HALF, data, "svd" if data is None else "kfac", example=example.to(dtype)))
    with pytest.raises(ModelError, match="does not take"):  # what a function of the user's own reads is the user's
        compress(model, HALF, generator="svd", example=example, forward_fn=lambda module, batch: module(batch))


def test_a_model_of_inference_mode_is_told_so() -> None:
    """Its channels and its size were blamed."""

    class Fast(nn.Sequential):
        @torch.inference_mode()
        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = super().forward(x)
            return found

    for data, generator in ((batches(), "kfac"), (None, "svd")):
        with pytest.raises(
            ModelError, match=r"a model that runs in torch\.inference_mode \(.*; write torch\.no_grad in"
        ):
            compress(Fast(*network()).eval(), HALF, data, generator, example=batches()[0])


def test_torch_s_default_dtype_changes_nothing() -> None:
    """The hypernetwork, its tokens and noise are of single precision, whatever a process computes in."""
    teacher, images = network(), batches()
    for options in ({"data": images}, {"data": images, "steady": True}, {"example": images[0]}):
        wanted = compress(teacher, HALF, **options)
        torch.set_default_dtype(torch.float64)
        try:
            got = compress(teacher, HALF, **options)
        finally:
            torch.set_default_dtype(torch.float32)
        assert same(got, wanted)


@pytest.mark.parametrize("options", [{}, {"search": 1e-6}, {"renormalize": True}])
def test_a_forward_function_may_take_a_student_s_network_apart(options: dict[str, Any]) -> None:
    def indexed(model: Any, batch: Tensor) -> Tensor:
        assert type(model) is nn.Sequential
        output: Tensor = model[5:](model[:5](batch))
        return output

    teacher = network()
    got = compress(teacher, HALF, batches(), "kfac", forward_fn=indexed, **options)
    assert same(got, compress(teacher, HALF, batches(), "kfac", **options))


class Placed(nn.Module):
    """Reads a table of places and a mask that belong to all samples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Linear(8, 32), nn.Linear(32, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor, places: Tensor, mask: Tensor) -> Tensor:
        assert places.shape == (50, 8)
        assert mask.shape == (6, 6)
        h = (mask @ self.first(x + places[: x.shape[1]])).relu()
        return self.last(self.second(h).relu().mean(1))


@pytest.mark.parametrize("count", [1, 2, 12])
def test_tensors_that_belong_to_all_samples(count: int) -> None:
    generator = torch.Generator().manual_seed(1)
    places, mask = torch.randn(50, 8, generator=generator), torch.ones(6, 6).tril() / 6
    images = [torch.randn(16, 6, 8, generator=generator) for _ in range(count)]
    teacher = Placed().eval()
    got = compress(teacher, HALF, [{"x": x, "places": places, "mask": mask} for x in images])
    bound = compress(teacher, HALF, images, forward_fn=lambda model, x: model(x, places, mask), example=images[0][:2])
    assert got.ranks == bound.ranks
    assert got.report["refitted"] == bound.report["refitted"]
    for name, value in got.state_dict().items():
        torch.testing.assert_close(value, bound.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_a_loader_that_refills_one_buffer() -> None:
    def refilled() -> Iterator[Tensor]:
        buffer = torch.empty_like(batches()[0])
        for batch in batches():
            yield buffer.copy_(batch)

    teacher = network()
    assert same(compress(teacher, HALF, refilled()), compress(teacher, HALF, batches()))


@pytest.mark.parametrize("seed", [7, 9, 15])
def test_a_mixture_of_experts_of_which_the_student_runs_others(seed: int) -> None:
    torch.manual_seed(seed)
    teacher = Experts(8, 64).eval()
    student = compress(teacher, Budget(params=0.45), list(torch.randn(12, 16, 8).unbind()))
    assert student.ranks


class Single(nn.Module):
    """Runs image by image, without an axis of samples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.last(self.second(self.first(i).relu()).relu().mean((1, 2))) for i in x])


def test_convolutions_without_an_axis_of_samples() -> None:
    student = compress(Single().eval(), HALF, batches())
    assert student.ranks
    assert student.report["fidelity"]["kl"] < 1
