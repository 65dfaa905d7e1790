"""Two networks side by side on the same images: one lends its layers' outputs to the other, layer by layer."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from queue import SimpleQueue
from typing import Any

import torch
from torch import Tensor, nn


class _StoppedError(BaseException):
    """Ends the teacher's forward pass early; no ``except Exception`` of the teacher's own holds it up."""


def _surroundings() -> Callable[[], ExitStack]:
    """What torch keeps for each thread (autocast, and on a GPU the stream), to be entered in another thread."""
    cuda = torch.cuda.is_initialized()
    devices = ("cpu", "cuda") if cuda else ("cpu",)
    states = [(kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)) for kind in devices]
    caching = torch.is_autocast_cache_enabled()
    stream = torch.cuda.current_stream() if cuda else None
    place = torch.get_default_device()

    def enter() -> ExitStack:
        stack = ExitStack()
        for kind, dtype, enabled in states:
            stack.enter_context(torch.autocast(kind, dtype, enabled=enabled, cache_enabled=caching))
        if place.type != "cpu":
            stack.enter_context(place)
        if stream is not None:
            stack.enter_context(torch.cuda.stream(stream))
        return stack

    return enter


class Relay:
    """The teacher's forward pass in a thread of its own, which goes on only where an output of it is asked for.

    It must wait while one is read: what follows a layer may write into that layer's output (``ReLU(inplace=True)``,
    ``x += shortcut``). Until the next is asked for it waits because two networks at once need the memory of both, and
    on a CPU are no faster.

    Where routing lets one of the two leave out layers that the other runs, both go on: the teacher's that nobody reads
    are passed over, and what the teacher does not run is not lent.

    Args:
        run: the teacher's forward pass.
        order: names of the layers as they mostly run.
    """

    def __init__(self, run: Callable[[], object], order: Iterable[str]) -> None:
        self._places = {name: place for place, name in enumerate(order)}
        self._lent: tuple[str, Tensor] | None = None  # for a layer that was not asked for yet
        self._ended = False
        self._slot: SimpleQueue[tuple[str | None, Any]] = SimpleQueue()
        self._asked = threading.Semaphore(0)
        self._stopped = False
        self._surroundings: Callable[[], ExitStack] = ExitStack
        self._thread = threading.Thread(target=self._lead, args=(run,), name="teacher", daemon=True)

    def _lead(self, run: Callable[[], object]) -> None:
        end: BaseException | None = None
        try:
            self._wait()
            with self._surroundings(), torch.no_grad():  # grad mode belongs to a thread
                run()
        except _StoppedError:
            pass
        except BaseException as error:  # noqa: BLE001  (handed to the thread that waits for it)
            end = error
        self._slot.put((None, end))

    def _wait(self) -> None:
        """Until the next output is asked for."""
        if not self._stopped:  # once stopped nobody asks again
            self._asked.acquire()
        if self._stopped:
            raise _StoppedError

    def lend(self, name: str, output: Tensor) -> None:
        """Called by the teacher: waits until the output was read and another is asked for."""
        self._slot.put((name, output))
        self._wait()

    def hook(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        """Forward hook of one layer of the teacher."""
        return lambda _module, _inputs, output: self.lend(name, output)

    @contextmanager
    def borrow(self, name: str) -> Iterator[Tensor | None]:
        """The teacher's output of this call of the layer, as it left the layer, to be read inside the block; ``None``
        if the teacher does not run the layer here.

        Raises:
            Whatever the teacher raised.
        """
        while not self._ended and (self._lent is None or self._places[self._lent[0]] < self._places[name]):
            self._go_on()
        output = None
        if self._lent is not None and self._lent[0] == name:
            output, self._lent = self._lent[1], None
        yield output

    def _go_on(self) -> None:
        """Let the teacher run to its next output, or to its end."""
        self._lent = None
        self._asked.release()
        name, output = self._slot.get()
        self._ended = name is None
        if isinstance(output, BaseException):
            raise output
        if name is not None:
            self._lent = name, output

    def __enter__(self) -> "Relay":
        self._surroundings = _surroundings()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._asked.release()  # the teacher may wait for an output that nobody will read
        self._thread.join()
