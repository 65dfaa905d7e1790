"""What a command shows: notes and results on standard output, a progress bar on standard error."""

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

WIDE = 200  # columns of a file or a pipe, where a table need not fit a screen


class Terminal:
    """The two streams. The bar appears only where a person looks: on a terminal, and not with ``--json``.

    Args:
        quiet: print one JSON object and nothing else.
    """

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.out = Console(markup=False, highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDE)
        self.bar = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[at]}"),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,
            disable=quiet or not sys.stderr.isatty(),
        )
        self.task: TaskID | None = None
        self.later: dict[str, tuple[str, int | None]] = {}

    def __enter__(self) -> "Terminal":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def phase(self, name: str, total: int | None = None) -> None:
        """Begin a phase of ``total`` images or layers (``None``: unknown) and end the one before."""
        self._end()
        self.task = self.bar.add_task(name, total=total, at="")

    def then(self, signal: str, name: str, total: int | None = None) -> None:
        """A phase that begins when `progress` is first called with ``signal``."""
        self.later[signal] = (name, total)

    def progress(self, signal: str, done: int, at: str = "") -> None:
        """So much of this phase is done; the signature is that of `calling.Progress`."""
        if signal in self.later:
            self.phase(*self.later.pop(signal))
        if self.task is not None:
            self.bar.update(self.task, completed=done, at=at)

    def counted(self, name: str, batches: Iterable[Any], total: int) -> Iterator[Any]:
        """``batches`` of ``(images, labels)``, as a phase that counts images."""
        self.phase(name, total)
        done = 0
        for batch in batches:
            yield batch
            done += len(batch[0])
            self.progress(name, done)

    def note(self, name: str, value: str) -> None:
        """A default that was derived: ``name: value``."""
        self.show(f"{name}: {value}")

    def show(self, content: RenderableType) -> None:
        """Print on standard output, beside the bar; nothing with ``--json``."""
        if self.quiet:
            return
        running = self.bar.live.is_started
        self.bar.stop()
        self.out.print(content)
        if running:
            self.bar.start()

    def finish(self, result: Mapping[str, Any]) -> None:
        """The last phase is over; with ``--json`` print the result."""
        self._end()
        self.bar.stop()
        if self.quiet:
            sys.stdout.write(json.dumps(finite(result), allow_nan=False) + "\n")

    def _end(self) -> None:
        if self.task is not None:
            self.bar.update(self.task, total=1, completed=1)
            self.bar.remove_task(self.task)
            self.task = None


def finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for what could not be measured."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
