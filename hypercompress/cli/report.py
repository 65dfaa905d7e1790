"""``hypercompress report``: the table of a student's report."""

from argparse import Namespace
from pathlib import Path

from hypercompress import artefact
from hypercompress.cli import checks
from hypercompress.cli.terminal import Terminal
from hypercompress.errors import ArtefactError
from hypercompress.report import print_report


def report(arguments: Namespace) -> None:
    """Print ``report.json`` of a student folder, as a table or as it is.

    Raises:
        ArtefactError: no student folder, or an altered one.
    """
    checks.require(lambda: checks.device(arguments.device))
    content = artefact.load(Path(arguments.student)).report
    with Terminal(arguments.json) as terminal:
        if not arguments.json:
            try:
                print_report(content, terminal.out)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                raise ArtefactError(
                    f"received {arguments.student}/{artefact.REPORT} that is no report ({type(error).__name__}: "
                    f"{error}); {artefact.AS_SAVED}, or pass --json to see what it holds"
                ) from error
        terminal.finish(content)
