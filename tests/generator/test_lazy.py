"""Values that are made when they are asked for, one in memory at a time."""

import gc
import weakref

import pytest
import torch

from hypercompress.generator.lazy import OnDemand


def test_each_value_is_made_when_asked_for_and_only_the_last_is_kept() -> None:
    made: list[str] = []

    def make(name: str) -> torch.Tensor:
        made.append(name)
        return torch.full((2,), float(len(name)))

    table = OnDemand(["a", "bb"], make)
    assert made == []
    assert list(table) == ["a", "bb"]
    assert len(table) == 2
    assert "a" in table
    assert "c" not in table
    assert made == []
    first = table["a"]
    assert table["a"] is first
    assert made == ["a"]
    gone = weakref.ref(first)
    del first
    assert table["bb"].tolist() == [2.0, 2.0]
    gc.collect()
    assert gone() is None
    assert table["a"].tolist() == [1.0, 1.0]
    assert made == ["a", "bb", "a"]
    with pytest.raises(KeyError):
        table["c"]
