"""The console script ``hypercompress``: generate, evaluate, report."""

from hypercompress.cli.entry import main

__all__ = ["main"]
