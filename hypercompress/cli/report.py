"""``hypercompress report``: a student's report as a table, as a page, or as it is."""

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypercompress.cli import checks
from hypercompress.cli.shown import show_task
from hypercompress.cli.terminal import Terminal
from hypercompress.errors import ArtefactError, HypercompressError
from hypercompress.report import print_report
from hypercompress.saved import artefact
from hypercompress.saved.artefact import Saved
from hypercompress.saved.configuration import architecture_in
from hypercompress.saved.whole_file import refuse_existing_file, whole_file


def report(arguments: Namespace) -> None:
    """Show ``report.json`` of a student folder.

    Raises:
        ArtefactError: no student folder, an altered one, or a file that is in the way; nothing is written then.
    """
    folder, file = Path(arguments.student), arguments.html
    checks.require(
        lambda: checks.device(arguments.device), lambda: _writable(folder, file, overwrite=arguments.overwrite)
    )
    saved = artefact.load(folder)
    with Terminal(arguments.json) as terminal:
        if file is not None:
            page = _page(saved, folder)
            with whole_file(file, arguments.overwrite) as staged:
                staged.write_text(page, encoding="utf-8")
            terminal.note("saved", str(file))
        elif not arguments.json:
            with _readable(folder):
                if "transfer" in saved.report:
                    show_task(saved.report["transfer"], terminal)
                print_report(saved.report, terminal.out)
        terminal.finish(saved.report)


def _writable(folder: Path, file: Path | None, *, overwrite: bool) -> None:
    if file is None:
        if overwrite:
            raise HypercompressError(
                "received --overwrite without --html; expected a file that it is for; drop it or pass --html FILE"
            )
        return
    refuse_existing_file(file, overwrite)
    checks.writable(file.parent)
    checks.apart(file, folder)


def _page(saved: Saved, folder: Path) -> str:
    from hypercompress.page import report_page

    if not set(saved.report) - {"classes"}:  # a trained teacher names its classes and no more
        raise ArtefactError(
            f"received {folder}, which has no report; expected a student made by generate or transfer; make one, or "
            "drop --html"
        )
    architecture = architecture_in(saved.config["architecture"], folder)
    with _readable(folder):
        return report_page(saved.report, "a custom network" if architecture is None else architecture.name)


@contextmanager
def _readable(folder: Path) -> Iterator[None]:
    """Whatever goes wrong inside is the fault of the report: anybody may have written it."""
    try:
        yield
    except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtefactError(
            f"received {folder}/{artefact.REPORT} that is no report ({type(error).__name__}: {error}); "
            f"{artefact.AS_SAVED}, or pass --json to see what it holds"
        ) from error
