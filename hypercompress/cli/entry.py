"""``main``: from the command line to an exit code, and from any fault of the input to one line.

Exit codes: 0; 2 with one line ``error: received ...; expected ...; do ...`` on standard error for bad input; 130 when
interrupted; 141 when the reader of standard output went away. Anything else is a fault of the program and keeps its
traceback.
"""

import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import TextIOWrapper
from typing import TextIO

from hypercompress.cli.bench import bench
from hypercompress.cli.evaluate import evaluate
from hypercompress.cli.export import export
from hypercompress.cli.generate import generate
from hypercompress.cli.parser import make_parser
from hypercompress.cli.report import report
from hypercompress.cli.transfer import transfer
from hypercompress.errors import HypercompressError
from hypercompress.running.calling import out_of_memory

COMMANDS = {
    "generate": generate,
    "evaluate": evaluate,
    "bench": bench,
    "export": export,
    "report": report,
    "transfer": transfer,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after the program's name; ``None``: those of this process.

    Returns:
        the exit code.
    """
    _escape_unencodable()
    try:
        arguments = make_parser().parse_args(argv)
    except SystemExit as leave:  # --help and --version
        return int(leave.code or 0)
    except HypercompressError as error:
        return failed(f"error: {error}")
    return run(arguments)


def run(arguments: Namespace) -> int:
    """Run a command that has been parsed."""
    try:
        with one_line_warnings():
            COMMANDS[arguments.command](arguments)
        sys.stdout.flush()
    except SystemExit:  # rich's own answer to a reader that went away
        return 141
    except KeyboardInterrupt:
        return failed("interrupted", 130)
    except HypercompressError as error:
        return failed(f"error: {error}")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # so that the interpreter's last flush does not complain
        return 141
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return failed(
            f"error: received a model and batches beyond the memory there is ({error}); expected them to fit; lower "
            "--batch-size, or choose another --device"
        )
    except OSError as error:
        return failed(
            f"error: received '{error}' from the system; expected files that can be read and written; "
            "check space and permission"
        )
    return 0


def _escape_unencodable() -> None:
    """What a stream cannot encode, as letters of paths in ASCII, is written as escapes instead of raised."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper) and stream.errors == "strict":  # others were chosen
            stream.reconfigure(errors="backslashreplace")


def failed(text: str, code: int = 2) -> int:
    """Say it in one line on standard error."""
    sys.stderr.write(" ".join(text.split()) + "\n")
    return code


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Warnings as one line each, without the source code that Python shows."""

    def show(
        message: Warning | str,
        category: type[Warning],  # noqa: ARG001 - the signature is Python's
        filename: str,  # noqa: ARG001
        lineno: int,  # noqa: ARG001
        file: TextIO | None = None,
        line: str | None = None,  # noqa: ARG001
    ) -> None:
        (file or sys.stderr).write(f"warning: {' '.join(str(message).split())}\n")

    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=UserWarning)  # the one that counts unreadable images is one
        warnings.showwarning = show
        yield
