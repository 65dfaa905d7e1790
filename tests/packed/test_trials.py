"""What counts as the same output, and how many changes are found that change nothing."""

from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import nn

from hypercompress.packed.trials import alike, fitting, passed, tried


@given(st.lists(st.booleans(), max_size=12))
def test_all_that_fit_by_themselves_are_found(good: list[bool]) -> None:
    seen: list[list[int]] = []
    found = list[int]()

    def same(items: Sequence[int]) -> bool:
        assert set(found) <= set(items)
        seen.append(list(items))
        if all(good[item] for item in items):
            found[:] = items
            return True
        return False

    items = list(range(len(good)))
    wanted = [item for item in items if good[item]]
    assert fitting(same, items) == wanted
    assert found == wanted
    assert len(seen) == 1 or not all(good)


def test_of_two_that_exclude_each_other_the_first_is_found() -> None:
    assert fitting(lambda items: not {0, 2} <= set(items), range(4)) == [0, 1, 3]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_half_the_digits_are_rounding(dtype: torch.dtype) -> None:
    one = torch.randn(50, generator=torch.Generator().manual_seed(0)).to(dtype)
    share = torch.finfo(dtype).eps ** 0.5
    assert alike(one, one)
    assert alike(one * (1 + share / 2), one)
    assert not alike(one * (1 + 4 * share), one)
    assert not alike(one[:-1], one)
    assert not alike(one, one.to(torch.complex128))


def test_what_is_not_finite_is_alike_where_it_stands() -> None:
    one = torch.tensor([1.0, torch.nan, torch.inf])
    assert alike(one, one.clone())
    assert not alike(one, one.flip(0))
    assert alike(torch.zeros(0), torch.zeros(0))
    assert not alike(torch.tensor([1, 2]), torch.tensor([1, 3]))


def test_a_pass_leaves_the_model_and_the_random_state() -> None:
    model, x = nn.Sequential(nn.Linear(3, 3), nn.Dropout(), nn.BatchNorm1d(3)).train(), torch.randn(4, 3)
    state = torch.get_rng_state()

    def forward(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
        assert not model.training
        output: torch.Tensor = model(batch) + torch.rand(1)
        return output

    output = passed(model, x, forward)
    assert not output.requires_grad
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(passed(model, x, forward), output)


def test_a_model_that_fails_gives_nothing_and_lack_of_memory_is_raised() -> None:
    def fails(error: Exception) -> torch.Tensor:
        raise error

    layer, x = nn.Linear(3, 3), torch.randn(1, 4)
    assert tried(layer, x, lambda model, batch: model(batch)) is None
    with pytest.raises(torch.OutOfMemoryError):
        tried(layer, x, lambda model, batch: fails(torch.OutOfMemoryError("no memory")))
