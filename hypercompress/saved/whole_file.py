"""A file that is written whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypercompress.errors import ArtefactError
from hypercompress.saved.replacing import allowed_mode, staging_beside, sync


def refuse_existing_file(file: Path, overwrite: bool) -> None:
    """Raises ArtefactError if ``file`` is in the way; cheap, so call it before the work starts."""
    if file.is_dir():
        raise ArtefactError(f"received the output {file}, a folder; expected a file; add a name to it")
    if file.exists() and not overwrite:
        raise ArtefactError(
            f"received the output {file}, which exists; expected a new path; choose another or pass --overwrite "
            "(overwrite=True)"
        )


@contextmanager
def whole_file(file: Path, overwrite: bool) -> Iterator[Path]:
    """A path of the same name that takes the place of ``file`` when the block ends well, and vanishes otherwise.

    Raises:
        ArtefactError: ``file`` exists and ``overwrite`` is false, or the disk refuses.
    """
    refuse_existing_file(file, overwrite)
    try:
        with staging_beside(file) as folder:
            staged = folder / file.name
            yield staged
            staged.chmod(allowed_mode(folder) & 0o666)
            sync(staged)
            staged.replace(file)
    except ArtefactError:
        raise
    except OSError as error:
        raise ArtefactError(
            f"received '{error}' while writing {file}; expected room and permission there; what was there before is "
            "unchanged"
        ) from error
