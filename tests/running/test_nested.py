"""What is found in nested collections, and in what order."""

from collections import OrderedDict
from typing import Any, NamedTuple

import pytest
import torch

from hypercompress.errors import ModelError
from hypercompress.running.nested import batch_size, flat


class Pair(NamedTuple):
    first: Any
    second: Any


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, [3]),
        ([], []),
        ([1, (2, [3, []]), {"a": 4, "b": (5, {"c": 6})}, 7], [1, 2, 3, 4, 5, 6, 7]),
        (OrderedDict(b=1, a=2), [1, 2]),
        (Pair([1, 2], {"x": 3}), [1, 2, 3]),
        ({1, 2}, [{1, 2}]),
        ("ab", ["ab"]),
    ],
)
def test_everything_comes_in_order(value: Any, expected: list[Any]) -> None:
    assert list(flat(value)) == expected


def test_what_is_there_twice_comes_twice() -> None:
    pair = [1, 2]
    assert list(flat([pair, pair, (pair,)])) == [1, 2] * 3


def test_a_list_that_holds_itself_comes_to_an_end() -> None:
    around: list[Any] = [1]
    around += [{"again": around}, 2]
    assert list(flat(around)) == [1, 2]


def test_depth_is_no_limit() -> None:
    value: Any = 1
    for _ in range(5000):
        value = [value]
    assert list(flat(value)) == [1]


def test_the_size_of_a_batch_is_that_of_its_first_tensor_with_an_axis() -> None:
    assert batch_size({"scale": torch.tensor(1.0), "x": [torch.zeros(3, 2), torch.zeros(5)]}) == 3
    with pytest.raises(ModelError, match=r"received an example of type dict; expected a batch that holds a tensor"):
        batch_size({"x": 1})
