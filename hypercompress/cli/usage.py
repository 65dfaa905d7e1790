"""argparse as this command line has it."""

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from hypercompress.data import expanded
from hypercompress.errors import HypercompressError

IMAGES = 1024  # that calibrate, where --images does not say how many


class UsageError(HypercompressError):
    """Words that are no command line."""


class Parser(argparse.ArgumentParser):
    """argparse, except that a mistake is one line and no usage text, and that OUT may stand behind options."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list[str]]:
        found, rest = super().parse_known_args(args, namespace)
        # Before Python 3.12.7 a positional argument that may be missing (nargs='?'), behind another one, counts as
        # missing at the first option (python/cpython#59317).
        rest = rest[1:] if rest[:1] == ["--"] else rest
        if len(rest) == 1 and not rest[0].startswith("-") and getattr(found, "out", "") is None:
            found.out, rest = expanded(rest[0]), []
        if rest:  # told by this command, which knows the place of its help
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return found, rest

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"received an unusable command line ({message}); expected its usage; run {self.prog} --help")


def share(text: str) -> float:
    """A number, to argparse; what is none is mostly a percentage."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a share such as 0.4, not {text!r}") from None
