"""The console script ``hypercompress``: generate, evaluate, bench, export, report, transfer."""

from hypercompress.cli.entry import main

__all__ = ["main"]
