"""What hooks call of a kind of layer, in whichever thread the model runs it."""

from threading import Thread

import pytest
import torch
from torch import nn

from hypercompress.alone import ALONE
from hypercompress.kinds import kind_of


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Conv1d(3, 4, 3), torch.randn(2, 3, 8)),
        (nn.Conv2d(3, 4, 3, padding_mode="circular", padding=1), torch.randn(2, 3, 8, 8)),
        (nn.ConvTranspose2d(3, 4, 3), torch.randn(2, 3, 8, 8)),
    ],
    ids=["1d", "circular", "transposed"],
)
def test_inputs_are_read_by_another_thread_while_this_one_compresses(layer: nn.Module, x: torch.Tensor) -> None:
    """A checkpointed forward runs again in a thread of the backward pass, for which the one that compresses waits."""
    kind, found = kind_of(layer), []
    assert kind is not None
    thread = Thread(target=lambda: found.extend([kind.input_rows(layer, x), kind.input_mean(layer, x)]), daemon=True)
    with ALONE:
        thread.start()
        thread.join(10)
    rows, mean = found
    torch.testing.assert_close(mean, rows.mean(-2), rtol=1e-4, atol=1e-5)
