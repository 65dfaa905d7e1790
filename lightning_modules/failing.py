"""How a run that failed says so: in one line where a setting, the input or the disk is at fault."""

import errno
import re
from pathlib import Path
from types import TracebackType

import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException

from hypercompress.errors import HypercompressError

# What a disk, or the path of an output, can be at fault with.
UNWRITABLE = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM),
    *(errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.EFBIG, errno.ENAMETOOLONG),
}
# Options of the command line that messages speak of, and what train.py calls them. They are those of a teacher that is
# trained: of the one in a distillation they are translated where it is loaded.
OPTIONS = {
    "--model-args": "--model.model_args",
    "--checkpoint": "--model.checkpoint",
    "--no-pretrained": "--model.pretrained false",
}
PREPARATION = re.compile(r"--(input-size|mean|std)((?: [A-Z0-9]+)*)")  # of images, with one word for each number
FROM_WORKER = "in DataLoader worker process"  # how torch begins what it makes of a worker's error


def told(error: BaseException, saved: Path | None = None) -> str | None:
    """The line; ``None`` of an error that is nobody's setting: then its traceback says more.

    Args:
        saved: the latest checkpoint of the run, told where the result could not be written.
    """
    ours = behind(error)
    if isinstance(ours, HypercompressError):
        line = in_our_words(message(ours))
    elif ours is not None or (isinstance(error, ValueError | ModuleNotFoundError) and from_lightning(error)):
        line = refused(ours or error)
    elif isinstance(error, OSError) and error.errno in UNWRITABLE:
        line = (
            f"received {error} while the run wrote its outputs; expected room for them and the right to write; make "
            "some, or choose another place with --run FOLDER"
        )
    else:
        return None
    lost = saved is not None and isinstance(ours or error, OSError)
    return f"{line}; go on with the same command and --ckpt_path {saved}" if lost else line


def behind(error: BaseException | None) -> HypercompressError | MisconfigurationException | None:
    """The error of ours, or Lightning's of a setting, behind one of jsonargparse's, which wraps what a constructor
    raises in a page of text.
    """
    while error is not None and not isinstance(error, HypercompressError | MisconfigurationException):
        error = error.__cause__
    return error


def message(error: HypercompressError) -> str:
    """What it says; of one that a worker raised without the worker's traceback, which torch puts before it."""
    text, kind = str(error), type(error)
    if FROM_WORKER in text.partition("\n")[0]:
        text = text.rpartition(f"\n{kind.__module__}.{kind.__qualname__}: ")[2]
    return text.strip()


def in_our_words(text: str) -> str:
    """A message of the package with the options of train.py in the place of the command line's."""
    text = text.replace(" or --input-size", "")  # beside img_size of the network, which alone does it here
    for word, ours in OPTIONS.items():
        text = re.sub(rf"(?<!\w){word}(?![\w-])", ours, text)

    def option(found: re.Match[str]) -> str:
        numbers = f" [{', '.join(found[2].split())}]" if found[2] else ""
        return f"--data.inputs.{found[1].replace('-', '_')}{numbers}"

    return PREPARATION.sub(option, text)


def refused(error: BaseException) -> str:
    """The line for settings that Lightning does not take."""
    reason = " ".join(str(error).split())[:300]
    return (
        f"received settings of the trainer that Lightning refuses ({reason}); expected those of its Trainer; change "
        "--trainer.* or --ckpt_path"
    )


def from_lightning(error: BaseException) -> bool:
    """Whether the line that raised it is Lightning's."""
    last: TracebackType | None = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return last is not None and Path(last.tb_frame.f_code.co_filename).is_relative_to(Path(lightning.__file__).parent)
