"""A training step as one CUDA graph: a small network keeps a card waiting for instructions, and a replay is one."""

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Int64
from torch import Tensor, nn

WARMING = 3  # steps before the capture, which torch asks for


class Captured:
    """``step(places)`` of one network and its optimiser, recorded once and replayed on a stream of its own.

    Args:
        network: on a card; as it was when the constructor returns.
        optimizer: ``capturable``, before its first step, its rates tensors on the card.
        step: forward, backward and the optimiser's step for the images at some places; reads nothing back.
        places: of the first batch; all others have as many.

    Raises:
        RuntimeError: the network does what no graph holds, such as to wait for a result.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        step: Callable[[Int64[Tensor, " b"]], None],
        places: Int64[Tensor, " b"],
    ) -> None:
        self.places, self.stream, self.graph = places.clone(), torch.cuda.Stream(), torch.cuda.CUDAGraph()
        kept = [(t, t.detach().clone()) for t in (*network.parameters(), *network.buffers())]
        self.stream.wait_stream(torch.cuda.current_stream())
        try:
            with torch.cuda.stream(self.stream):
                for _ in range(WARMING):
                    optimizer.zero_grad()
                    step(self.places)
                optimizer.zero_grad()  # the capture makes gradients of its own, which each replay writes anew
            torch.cuda.synchronize()
            with torch.cuda.graph(self.graph, stream=self.stream):
                step(self.places)
        finally:
            torch.cuda.synchronize()
            with torch.no_grad():
                for tensor, value in kept:
                    tensor.copy_(value)
                for tensor in _moments(optimizer):
                    tensor.zero_()
            torch.cuda.synchronize()

    def __call__(self, places: Int64[Tensor, " b"], set_rate: Callable[[], None]) -> None:
        """One step; returns before it is done.

        Args:
            set_rate: sets the optimiser's rates, in the stream's order.
        """
        with torch.cuda.stream(self.stream):
            self.places.copy_(places, non_blocking=True)
            set_rate()
            self.graph.replay()


def _moments(optimizer: torch.optim.Optimizer) -> Iterable[Tensor]:
    for state in optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))
