"""``hypercompress report``: the table of a student's report."""

from argparse import Namespace
from pathlib import Path

from hypercompress import artefact
from hypercompress.cli import checks
from hypercompress.cli.terminal import Terminal
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
            print_report(content, terminal.out)
        terminal.finish(content)
