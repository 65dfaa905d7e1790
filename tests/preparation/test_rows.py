"""Batches whose samples are not the rows of their first tensor are known by what the model gives, and stay whole."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypercompress import Budget, compress
from hypercompress.errors import DataError, ModelError
from hypercompress.fidelity import compare
from hypercompress.preparation import Plan, prepare
from hypercompress.running.batches import join, pieces, resized, rows_of
from hypercompress.running.nested import Uncut, batch_size, flat, labels_of

TOLD = pytest.warns(UserWarning, match="so it is neither cut nor joined")
HALF = Budget(params=0.5)


class Pooled(nn.Module):
    """Logits of what it reads, the mean over ``axis``."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers, self.axis = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 24), nn.Tanh()), axis
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.layers(x).mean(self.axis))
        return y


class Sets(Pooled):
    """Logits of each set of points; all points are in one tensor."""

    def __init__(self) -> None:
        super().__init__(0)

    def forward(self, x: Tensor, of: Tensor) -> Tensor:
        sums = x.new_zeros(int(of.max()) + 1, 24).index_add(0, of, self.layers(x))
        y: Tensor = self.head(sums / of.bincount()[:, None])
        return y


class Placed(Pooled):
    """Reads a table of positions ahead of the samples."""

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, table: Tensor, x: Tensor) -> Tensor:
        return super().forward(x + table)


def sequences(count: int = 6) -> list[tuple[Tensor, Tensor]]:
    """With samples first."""
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(9, 7, 6, generator=g), torch.randint(0, 5, (9,), generator=g)) for _ in range(count)]


def points(count: int = 6) -> list[dict[str, Tensor]]:
    g, sizes = torch.Generator().manual_seed(1), torch.tensor([5, 8, 3, 6])
    of = torch.repeat_interleave(torch.arange(4), sizes)
    return [{"x": torch.randn(22, 6, generator=g), "of": of} for _ in range(count)]


def whole(plan: Plan) -> list[Any]:
    assert plan.split is not None
    batches = [*plan.split.statistics, *plan.split.select, *plan.split.confirm]
    assert all(isinstance(batch, Uncut) for batch in batches)
    return batches


@pytest.mark.parametrize("time", [7, 9], ids=["7 steps", "as many steps as samples"])
def test_sequences_with_time_first_are_those_with_samples_first(time: int) -> None:
    """They were cut and joined along the time, and their MACs divided by its length."""
    data = [(x.repeat(1, 2, 1)[:, :time], y) for x, y in sequences()]
    turned = [(x.transpose(0, 1), y) for x, y in data]
    with TOLD:
        plan = prepare(Pooled(0).eval(), turned, "kfac")
    usual = prepare(Pooled(1).eval(), data, "kfac")
    assert plan.spec.macs == usual.spec.macs
    assert [row.positions for row in plan.spec.layers] == [row.positions for row in usual.spec.layers]
    assert [batch_size(batch) for batch in whole(plan)] == [9] * 6
    assert plan.split is not None
    assert usual.split is not None
    assert plan.split.samples == usual.split.samples == 36
    for name, sketch in usual.sketches.items():
        torch.testing.assert_close(plan.sketches[name].curvature.fisher, sketch.curvature.fisher)
    assert compare(plan.teacher, plan.teacher, plan.split.confirm, plan.run).top1_teacher is not None


@pytest.mark.parametrize("sizes", [[3] * 6, [3, *[9] * 6], [2] * 6])
def test_as_few_samples_as_are_passed_are_told_apart_too(sizes: list[int]) -> None:
    """A model that gives three rows whatever it gets looked like one whose first three rows are samples."""
    data = [torch.randn(20, size, 6) for size in sizes]
    with TOLD:
        plan = prepare(Pooled(0).eval(), data, "kfac")
    assert sum(map(batch_size, whole(plan))) == sum(sizes)


def test_a_batch_of_one_row_says_nothing_of_the_others() -> None:
    data = [torch.randn(length, 8, 6) for length in (1, *[20] * 6)]
    with TOLD:
        plan = prepare(Pooled(0).eval(), data, "kfac")
    assert plan.split is not None
    batches = [*plan.split.statistics, *plan.split.select, *plan.split.confirm]
    assert sum(isinstance(batch, Uncut) for batch in batches) == 6


def test_sets_of_points_stay_whole() -> None:
    """Sets were cut in two, and their points counted as samples."""
    model, data = Sets().eval(), points()
    with TOLD:
        student = compress(model, HALF, data, "kfac")
    assert student.report["fidelity"]["images"] == 4
    per_set = 22 * (6 * 32 + 32 * 24) // 4 + 24 * 5
    assert student.report["teacher"]["macs"] == per_set
    with TOLD:
        assert all(len(batch.batch["x"]) == 22 for batch in whole(prepare(model, data, "kfac")))


@pytest.mark.parametrize(
    ("model", "batch", "samples"),
    [
        (Placed(), {"table": torch.randn(7, 6), "x": torch.randn(9, 7, 6)}, 9),
        (nn.Sequential(Pooled(0), nn.Unflatten(0, (1, 5))), torch.randn(22, 6), 1),  # a bag
    ],
    ids=["a table first", "a bag"],
)
def test_other_batches_that_stay_whole(model: nn.Module, batch: Any, samples: int) -> None:
    with TOLD:
        plan = prepare(model.eval(), [batch] * 4, "kfac")
    assert {batch_size(each) for each in whole(plan)} == {samples}


class Fixed(nn.Module):
    """Takes batches of eight alone."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(8, 6)


@pytest.mark.parametrize(
    ("last", "shape"),
    [
        (nn.Unflatten(1, (5, 1)), (9, 6)),
        (nn.Flatten(0, 1), (9, 7, 6)),  # a row for each position of each sample
        (nn.Identity(), (1, 6)),
        (nn.Identity(), (2, 6)),
    ],
    ids=["usual", "rows of positions", "one", "two"],
)
def test_batches_of_samples_are_cut_as_ever(last: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 5), last).eval()
    plan = prepare(model, list(torch.randn(6, *shape)), "kfac")
    assert plan.split is not None
    assert all(isinstance(batch, Tensor) for batch in plan.split.statistics)


def test_a_model_that_takes_one_size_of_batch_gives_nothing_away() -> None:
    model = nn.Sequential(Fixed(), nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 5)).eval()
    plan = prepare(model, list(torch.randn(6, 8, 6)), "kfac")
    assert plan.split is not None
    assert all(isinstance(batch, Tensor) for batch in plan.split.statistics)


def stacked(read: Callable[[Any], Any]) -> Callable[[nn.Module, Any], Tensor]:
    def run(model: nn.Module, batch: Any) -> Tensor:
        logits: Tensor = model(torch.stack(list(read(batch))))
        return logits

    return run


@pytest.mark.parametrize("count", [3, 4, 16])
@pytest.mark.parametrize("held", ["tuple", "dict"])
def test_lists_of_samples_are_refused_by_name(count: int, held: str) -> None:
    """Such lists ended in torch's words, or their channels were counted as samples."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 5)).eval()
    images = [torch.randn(3, 8, 8) for _ in range(count)]
    batch: Any = (images, list(range(count))) if held == "tuple" else {"images": images}
    read = (lambda b: b[0]) if held == "tuple" else (lambda b: b["images"])
    said = rf"holds a list of {count} tensors \(the first is \[3, 8, 8\]\).*; stack them"
    with pytest.raises(DataError, match=said):
        compress(model, HALF, [batch] * 6, "kfac", forward_fn=stacked(read))
    with pytest.raises(DataError, match=said):
        compress(model, HALF, None, "svd", example=batch, forward_fn=stacked(read))


@pytest.mark.parametrize("labelled", [True, False])
def test_lists_that_the_model_does_not_take_are_refused_by_name(labelled: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()
    images = [torch.randn(3, 8, 8) for _ in range(16)]
    with pytest.raises(DataError, match="holds a list of 16 tensors"):
        compress(model, HALF, [(images, list(range(16))) if labelled else images] * 6, "kfac")


def test_of_many_tensors_that_a_model_does_not_take_a_few_are_named() -> None:
    images = [torch.randn(3, 8, 8 + index) for index in range(16)]
    with pytest.raises(ModelError, match=r"\[3, 8, 12\] and 11 more that the model does not take"):
        compress(nn.Linear(6, 5), HALF, [(images,)] * 6, "kfac")


def test_a_list_of_inputs_of_all_samples_is_none_of_samples() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(18, 32), nn.Tanh(), nn.Linear(32, 5)).eval()
    data = [[torch.randn(8, 6) for _ in range(3)] for _ in range(6)]
    compress(model, HALF, data, "kfac", forward_fn=lambda m, b: m(torch.cat(b, 1)))


def test_too_few_that_are_not_cut_are_refused() -> None:
    with TOLD, pytest.raises(DataError, match=r"received 2 calibration batches .* expected 3 or more of such"):
        compress(Sets().eval(), HALF, points(2), "kfac")


def test_no_batch_that_is_not_cut_is_timed() -> None:
    with TOLD, pytest.raises(DataError, match=r"received a latency budget, or fast=True, with batches whose"):
        compress(Sets().eval(), Budget(latency=0.9), points(), "kfac")


def test_an_example_alone_is_known_too() -> None:
    with TOLD:
        found = prepare(Pooled(0).eval(), None, "svd", example=torch.randn(7, 9, 6)).spec
    assert found.macs == prepare(Pooled(1).eval(), None, "svd", example=torch.randn(9, 7, 6)).spec.macs


def test_what_is_uncut_stays_whole() -> None:
    first, second = (Uncut((x, y), 9) for x, y in sequences(2))
    assert rows_of(first, slice(2)) is resized(first, 2) is first
    assert list(pieces([first], 1)) == [first]
    assert torch.equal(join([first, second], 99).batch[0], first.batch[0])
    assert labels_of(first) is first.batch[1]
    assert [id(value) for value in flat(first)] == [id(value) for value in first.batch]
