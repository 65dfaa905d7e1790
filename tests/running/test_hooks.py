"""Hooks last for a block, however it ends."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from hypercompress.running.hooks import hooked


def test_hooks_are_gone_after_the_block_and_after_an_error_in_it() -> None:
    model, seen = nn.Linear(2, 2), list[int]()

    def note(*_: object) -> None:
        seen.append(1)

    with hooked([model.register_forward_hook(note), model.register_forward_pre_hook(note)]):
        model(torch.ones(2))
    assert len(seen) == 2
    with pytest.raises(RuntimeError, match="shape"), hooked([model.register_forward_hook(note)]):
        model(torch.ones(3))
    assert not model._forward_hooks
    assert not model._forward_pre_hooks


def test_of_hooks_that_cannot_all_be_set_none_stays() -> None:
    model = nn.Linear(2, 2)

    def handles() -> Iterator[RemovableHandle]:
        yield model.register_forward_hook(print)
        raise KeyError("missing")

    with pytest.raises(KeyError), hooked(handles()):
        pytest.fail("the block ran")
    assert not model._forward_hooks
