"""Folders that are written all or nothing: made beside the old one, then put in its place."""

import contextlib
import ctypes
import errno
import glob
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hypercompress.errors import ArtefactError

LONGEST = 255  # bytes of a name, on every common file system
STAGED = 40  # bytes that the name of a temporary folder has beside that of what it stands for


@contextlib.contextmanager
def replaced(folder: Path, last: str, overwrite: bool = True) -> Iterator[Path]:
    """A temporary folder that takes the place of ``folder`` when the block ends well, and vanishes otherwise.

    Files of ``folder`` that the block does not write anew are carried over. A link stays, and what it points to is
    replaced. On Linux the two folders change places in one system call. Elsewhere, between moving the old folder aside
    and the new one in, a kill leaves the old one as ``.NAME.old``, complete. The current folder and mount points
    cannot be moved: there the files are, one by one. What a killed process left is cleared by the next one. Permissions
    of the folder, and of files that are written anew, stay.

    Args:
        last: the file that goes last where they are moved one by one: the one that makes the others valid.
        overwrite: false: what others have put there meanwhile is not replaced.

    Raises:
        OSError: the disk refuses; ``folder`` is as it was. ArtefactError: as ``overwrite`` says.
    """
    place = Path(os.path.realpath(folder))
    with _staging(place, prepared_in(folder)) as staging:
        yield staging
        mode = allowed_mode(staging)
        for path in staging.iterdir():
            sync(path)
            path.chmod(kept_mode(place / path.name, mode & 0o666))  # safetensors: files that nobody else may read
        if not overwrite:
            _refuse_filled(folder, place)
        if _stays(place):
            _move_in(staging, place, last)
            return
        if overwrite and place.exists():
            _carry_over(place, staging)
        staging.chmod(kept_mode(place, mode))
        if overwrite:
            _exchange(staging, place)
        else:
            _move_onto(staging, folder, place)


def staging_beside(path: Path) -> contextlib.AbstractContextManager[Path]:
    """A temporary folder beside ``path`` that is gone when the block ends. Those of killed processes go first."""
    return _staging(path, path.parent)


def prepared_in(folder: Path) -> Path:
    """Where the temporary folder for ``folder`` is made: beside it, or inside where it cannot be moved."""
    place = Path(os.path.realpath(folder))
    return place if _stays(place) else place.parent


def leftover(path: Path, place: Path) -> bool:
    """Whether ``path`` is a temporary folder of ``place``."""
    return path.name.startswith(f".{place.name}.new-")


def name_fault(folder: Path) -> str | None:
    """What is wrong with the path itself, so that no folder can be made of it; ``None`` if nothing is."""
    place = Path(os.path.realpath(folder))
    sizes = [len(os.fsencode(part)) for part in place.parts]
    if max(sizes) > LONGEST or sizes[-1] > LONGEST - STAGED:
        return f"a name of {max(sizes)} bytes; expected at most {LONGEST - STAGED}"
    try:
        linked = stat.S_ISLNK(place.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except OSError as error:
        return f"a path that the system does not take ({error.strerror}); expected a shorter one"
    return "a link that leads to itself; expected a folder" if linked else None


def allowed_mode(folder: Path) -> int:
    """Permissions that a new folder in ``folder`` gets: only making one tells what the umask leaves."""
    probe = folder / ".mode"
    probe.mkdir()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.rmdir()
    return mode


def kept_mode(old: Path, new: int) -> int:
    """Permissions of what is replaced, so that the private stays private; ``new`` where nothing is there."""
    return stat.S_IMODE(old.stat().st_mode) if old.exists() else new


def sync(path: Path) -> None:
    """Wait until the file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def _staging(path: Path, where: Path) -> Iterator[Path]:
    where.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(path, where)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-{os.getpid()}-", dir=where))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _clear_leftovers(path: Path, where: Path) -> None:
    """Remove temporary folders of processes that are no more."""
    for found in where.glob(f".{glob.escape(path.name)}.new-*-*"):
        pid = found.name.rpartition(".new-")[2].split("-")[0]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(found, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _stays(place: Path) -> bool:
    """Whether the folder cannot be exchanged: this process or a mount stands in it, or its parent is read-only."""
    if not place.is_dir():
        return False
    return _stood_in(place) or _mounted(place) or not os.access(place.parent, os.W_OK | os.X_OK)


def _stood_in(place: Path) -> bool:
    try:
        return Path(os.path.realpath(Path.cwd())).is_relative_to(place)
    except FileNotFoundError:  # the current folder was removed
        return False


def _mounted(place: Path) -> bool:
    """`os.path.ismount` misses a folder that is mounted from the same file system; Linux's own list does not."""
    if os.path.ismount(place):
        return True
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return False
    written = str(place).replace("\\", "\\134").replace(" ", "\\040")
    return any(line.split(" ")[4] == written for line in lines)


def _move_in(staging: Path, place: Path, last: str) -> None:
    """Move the files one by one: a kill in between leaves a ``last`` that does not fit the others, or none."""
    names = sorted((path.name for path in staging.iterdir()), key=lambda name: name == last)
    for name in names:
        if (place / name).is_dir():
            raise IsADirectoryError(f"{place / name} is a folder")
    for name in names:
        (staging / name).replace(place / name)


def _refuse_filled(folder: Path, place: Path) -> None:
    """Raises ArtefactError if somebody has filled the folder meanwhile."""
    if place.is_dir() and not all(leftover(path, place) for path in place.iterdir()):
        raise in_the_way(folder)


def in_the_way(output: Path) -> ArtefactError:
    """What to raise where something is that must not be replaced."""
    kind = "folder " if output.is_dir() else ""
    return ArtefactError(
        f"received the output {kind}{output}, which exists; expected a new path; choose another or pass --overwrite "
        "(overwrite=True)"
    )


def _move_onto(staging: Path, folder: Path, place: Path) -> None:
    """Put ``staging`` where nothing or an empty folder is: the system refuses whatever came after the last look."""
    if place.is_dir():
        _clear_leftovers(place, place)
    try:
        staging.rename(place)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise in_the_way(folder) from error
        raise


def _carry_over(place: Path, staging: Path) -> None:
    """Whatever ``place`` has and ``staging`` has not; as links, so that a kill at any time loses nothing."""
    for path in place.iterdir():
        target = staging / path.name
        if target.exists() or leftover(path, place):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, target, symlinks=True, copy_function=_link)
        else:
            _link(path, target)


def _link(source: str | Path, target: str | Path) -> None:
    """A second name of the file, or a copy where the file system has none."""
    try:
        os.link(source, target, follow_symlinks=False)
    except (OSError, NotImplementedError):
        shutil.copy2(source, target, follow_symlinks=False)


def _exchange(staging: Path, folder: Path) -> None:
    """Put ``staging`` in the place of ``folder``; afterwards ``staging`` may hold what was there."""
    if not folder.exists():
        staging.rename(folder)
        return
    if _swap(staging, folder):
        return
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    try:
        staging.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _swap(one: Path, other: Path) -> bool:
    """Exchange two paths atomically with Linux's renameat2; False where the system has no such call."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)
