"""A file that is written whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypercompress.data import expanded
from hypercompress.errors import ArtefactError
from hypercompress.saved.replacing import allowed_mode, in_the_way, kept_mode, staging_beside, sync


def refuse_existing_file(file: Path, overwrite: bool) -> None:
    """Raises ArtefactError if ``file`` is in the way; cheap, so call it before the work starts."""
    if file.is_dir():
        raise ArtefactError(f"received the output {file}, a folder; expected a file; add a name to it")
    if file.exists() and not file.is_file():
        raise ArtefactError(
            f"received the output {file}, a device, a pipe or the like; expected a file; choose another path"
        )
    if file.exists() and not overwrite:
        raise in_the_way(file)


@contextmanager
def whole_file(file: Path, overwrite: bool) -> Iterator[Path]:
    """A path of the same name that takes the place of ``file`` when the block ends well, and vanishes otherwise.

    A link stays, and what it points to is replaced. The permissions of a file that is replaced stay, too.

    Raises:
        ArtefactError: ``file`` exists, if only since the block began, and ``overwrite`` is false, or is no regular
            file, or the disk refuses.
    """
    file = expanded(file)
    refuse_existing_file(file, overwrite)
    place = Path(os.path.realpath(file))
    try:
        with staging_beside(place) as folder:
            staged = folder / file.name
            yield staged
            sync(staged)
            staged.chmod(kept_mode(place, allowed_mode(folder) & 0o666))
            if overwrite:
                staged.replace(place)
            else:
                _place_new(staged, file, place)
    except ArtefactError:
        raise
    except OSError as error:
        raise ArtefactError(
            f"received '{error}' while writing {file}; expected room and permission there; what was there before is "
            "unchanged"
        ) from error


def _place_new(staged: Path, file: Path, place: Path) -> None:
    """Unlike a move, a second name never replaces a file; the first one goes with the temporary folder."""
    try:
        os.link(staged, place)
    except FileExistsError as error:
        raise in_the_way(file) from error
    except (OSError, NotImplementedError):  # a file system without second names
        refuse_existing_file(file, overwrite=False)
        staged.replace(place)
