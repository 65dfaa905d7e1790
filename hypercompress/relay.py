"""Two networks side by side on the same images: one hands its layers' outputs to the other, one layer ahead."""

import threading
from collections.abc import Callable
from queue import Empty, Queue
from typing import Any

import torch
from torch import Tensor, nn

from hypercompress.errors import ModelError


class _StoppedError(Exception):
    """Ends the teacher's forward pass early."""


class Relay:
    """The teacher's forward pass in a thread of its own, one layer ahead of whoever takes its outputs."""

    def __init__(self, run: Callable[[], object]) -> None:
        self._slot: Queue[tuple[str | None, Any]] = Queue(maxsize=1)
        self._stopped = False
        self._thread = threading.Thread(target=self._lead, args=(run,), name="teacher", daemon=True)

    def _lead(self, run: Callable[[], object]) -> None:
        end: BaseException | None = None
        try:
            with torch.no_grad():  # grad mode belongs to a thread
                run()
        except _StoppedError:
            pass
        except BaseException as error:  # noqa: BLE001  (handed to the thread that waits for it)
            end = error
        self._slot.put((None, end))

    def put(self, name: str, output: Tensor) -> None:
        """Called by the teacher: waits until the output before was taken."""
        if self._stopped:
            raise _StoppedError
        self._slot.put((name, output))

    def hook(self, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        """Forward hook of one layer of the teacher."""
        return lambda _module, _inputs, output: self.put(name, output)

    def take(self, name: str) -> Tensor:
        """The teacher's output of this call of the layer.

        Raises:
            ModelError: the two networks do not run the same layers in the same order. Whatever the teacher raised.
        """
        got, output = self._slot.get()
        if isinstance(output, BaseException):
            raise output
        if got != name:
            raise ModelError(f"received a student that runs {name} where its teacher runs {got}; expected one order")
        assert isinstance(output, Tensor)
        return output

    def __enter__(self) -> "Relay":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        while self._thread.is_alive():
            try:
                self._slot.get_nowait()
            except Empty:
                self._thread.join(0.01)
