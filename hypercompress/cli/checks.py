"""Everything about a command line that can be known to be wrong before the first expensive step.

Each check either returns what it understood or raises; `require` runs them all and reports every fault at once.
"""

import hashlib
import json
import os
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch

from hypercompress.architecture.names import resolve
from hypercompress.architecture.weights import SUFFIXES, read_weights
from hypercompress.data import Preprocess, check_splits, expanded, folder_read, open_data, registered_names
from hypercompress.errors import ArtefactError, DataError, HypercompressError, ModelError
from hypercompress.models import is_student_folder, near_student_folders, require_known
from hypercompress.saved.artefact import CARD, CONFIG, REPORT, WEIGHTS
from hypercompress.synthetic.inversion import FEWER

SYNTHETIC, NOISE = "synthetic", "noise"  # DATA that is made: from the model itself, or 1/f noise
LEAST_IMAGES = 6  # three batches of two: some are held out


def require(*checks: Callable[[], object]) -> None:
    """Run every check; raise the one fault as it is, several as one error of one line that says each once."""
    faults: dict[str, HypercompressError] = {}
    for check in checks:
        try:
            check()
        except HypercompressError as error:
            faults.setdefault(str(error), error)
    if len(faults) == 1:
        raise next(iter(faults.values()))
    if faults:
        raise HypercompressError("; also ".join(faults))


def common(arguments: Namespace, *, batch_size: int = 1, made: bool = False) -> tuple[Callable[[], object], ...]:
    """The checks of what every command that runs a model has."""
    return (
        lambda: model_args(arguments.model_args),
        lambda: checkpoint(arguments.checkpoint),
        lambda: data(arguments.data, made=made),
        lambda: preprocessing(arguments.input_size, arguments.mean, arguments.std),
        lambda: device(arguments.device),
        lambda: at_least("--batch-size", arguments.batch_size, batch_size),
        lambda: at_least("--images", arguments.images, 1),
        lambda: at_least("--seed", arguments.seed, 0),
    )


def model(text: str) -> None:
    """A student folder, a name timm knows, or a repository that only the hub can judge."""
    there, student = Path(text).exists(), is_student_folder(text)
    path = text.startswith((".", "/", "~")) or (there and not timm.is_model(text))  # it may be called as a model is
    if path and not student:
        what = "is there but is no student folder (no config.json)" if there else "does not exist"
        raise ModelError(
            f"received model {text}, which {what}; expected a timm name or a student folder; {meant(text)}check the "
            "path (a folder of timm's own is local-dir:FOLDER)"
        )
    require_known(text)
    if not student and not text.startswith(("hf-hub:", "hf_hub:")):
        resolve(text)


def meant(text: str) -> str:
    """A question that an advice may follow, where student folders are called nearly so; else empty."""
    near = near_student_folders(text)
    return f"did you mean {', '.join(near)}? Or " if near else ""


def model_args(text: str | None) -> dict[str, Any]:
    """The arguments of a timm model."""
    try:
        value = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise ModelError(
            f"received --model-args {text} that is no JSON ({error}); expected an object such as "
            '{"num_classes": 10, "in_chans": 1}; put it in single quotes'
        ) from error
    if not isinstance(value, dict):
        raise ModelError(
            f"received --model-args {text}; expected a JSON object such as "
            '{"num_classes": 10, "in_chans": 1}; pass one'
        )
    return value


def checkpoint(path: Path | None) -> None:
    """There is a file of a known kind; whether it fits shows when it is loaded."""
    if path is not None and (not path.is_file() or path.suffix.lower() not in SUFFIXES):
        read_weights(path)  # raises, in the same words as for Python users


@dataclass(frozen=True)
class Made:
    """Images that are made; ``count`` is 0 where as many as usual are asked for."""

    kind: str
    count: int


def made_images(text: str | None) -> Made | None:
    """What ``synthetic[:COUNT]`` or ``noise[:COUNT]`` asks for; ``None`` if the text is something else.

    Raises:
        DataError: what stands after the colon is no count.
    """
    name, colon, count = (text or "").partition(":")
    if name not in (SYNTHETIC, NOISE):
        return None
    if colon and not (count.isdecimal() and LEAST_IMAGES <= int(count) < 2**31):
        raise DataError(
            f"received data {text!r}; expected {name} or {name}:COUNT with at least {LEAST_IMAGES} images; "
            f"pass {name}:{FEWER}"
        )
    return Made(name, int(count) if colon else 0)


def counted(arguments: Namespace) -> None:
    """``--images`` and ``--latency-batch-size`` of ``generate`` have something that they can be a number of."""
    made = Made(NOISE, 0) if arguments.data is None else made_images(arguments.data)
    if arguments.images is not None and made is not None:
        given = "without --data" if arguments.data is None else f"with --data {arguments.data}"
        raise DataError(
            f"received --images {arguments.images} {given}; expected images to choose so many of; pass a folder of "
            f"them, or --data {made.kind}:{max(arguments.images, LEAST_IMAGES)} for so many that are made"
        )
    at_least("--latency-batch-size", arguments.latency_batch_size, 1)
    if arguments.latency_batch_size is not None and arguments.latency is None and not arguments.fast:
        raise HypercompressError(
            "received --latency-batch-size without --latency or --fast; expected one of these, as they measure time; "
            "pass one too"
        )


def unlike(arguments: Namespace) -> bool:
    """Whether the images are none of the model's own kind, so that it sees them with its BatchNorms renormalised."""
    wanted = made_images(arguments.data)
    return bool(arguments.renormalize) or (wanted is not None and wanted.kind == NOISE)


def data(text: str | None, *, made: bool = False) -> None:
    """A registered name or a folder that exists; its images are read later. Some commands take those ``made`` too."""
    if made and made_images(text) is not None:
        return
    if text is not None and (name := text.partition(":")[0]) in (SYNTHETIC, NOISE):
        raise DataError(
            f"received data {text!r}; expected real images: made ones only calibrate generate; pass a folder (./{name} "
            "if it is one)"
        )
    if text is not None and text.partition(":")[0] not in registered_names() and not (text and expanded(text).is_dir()):
        open_data(text, Preprocess((1, 1, 1), (0.0,), (1.0,)), train=True)  # raises, with the nearest names


def image_folder(text: str) -> Path | None:
    """The folder that DATA names; ``None``: there is none, or a registered name, which wins over a folder of it."""
    folder = expanded(text)
    return folder if text.partition(":")[0] not in registered_names() and folder.is_dir() else None


def folder_digest(text: Any, *, train: bool) -> str | None:
    """By what the folder that is read of DATA is known again, wherever a command runs; ``None`` if it names none.

    A digest of the whole path, which reports do not have: student folders are passed on.
    """
    folder = None if not isinstance(text, str) or made_images(text) is not None else image_folder(text)
    if folder is None:
        return None
    try:
        read = folder_read(folder, train=train)
    except (DataError, OSError):  # it has been changed since, and cannot be read so any more
        return None
    return hashlib.sha256(os.fsencode(read.resolve())).hexdigest()[:16]


def splits(text: str) -> None:
    """The classes of a folder's splits are the same ones; see `check_splits`."""
    if (folder := image_folder(text)) is not None:
        check_splits(folder)


def preprocessing(size: Sequence[int] | None, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """The overrides agree with each other, as far as they can be judged without the model."""
    counts = {len(values) for values in (mean, std) if values is not None} - {1}
    if size is None and (len(counts) > 1 or not counts <= {3}):
        raise DataError(
            f"received {' and '.join(map(str, sorted(counts)))} values of --mean or --std; expected one value, or one "
            "for each channel; pass 1 or 3"
        )
    channels = size[0] if size is not None else next(iter(counts), 1)
    height, width = size[1:] if size is not None else (1, 1)

    def spread(values: Sequence[float] | None) -> tuple[float, ...]:
        return tuple(values or (1.0,)) * (channels if len(values or (1.0,)) == 1 else 1)

    Preprocess((channels, height, width), spread(mean), spread(std))


def device(text: str | None) -> torch.device:
    """The device named, or CUDA if there is one. Others lack the double precision that factorization needs."""
    if text is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        found = torch.device(text)
    except RuntimeError:
        found = torch.device("meta")
    if (found.type == "cpu" and not found.index) or (found.type == "cuda" and (found.index or 0) < count):
        return found
    there = ", ".join(["cpu", *(f"cuda:{index}" for index in range(count))])
    raise HypercompressError(f"received --device {text}; expected one of {there}; choose one that this machine has")


def at_least(option: str, value: int | None, least: int) -> None:
    """A number from ``least`` to what fits into 63 bits."""
    if value is not None and not least <= value < 2**63:
        raise HypercompressError(f"received {option} {value}; expected a whole number from {least}; pass one")


def share(option: str, value: float | None) -> None:
    """A share above 0, and at most 1."""
    if value is not None and not 0 < value <= 1:
        raise HypercompressError(f"received {option} {value:g}; expected a share in (0, 1]; pass one")


def of_steps(option: str, value: object, steps: int) -> None:
    """There are steps for an option that says something of them."""
    if value is not None and not steps:
        raise HypercompressError(f"received {option} without --steps; expected steps that it is for; pass --steps too")


def writable(folder: Path) -> None:
    """The nearest folder above that exists takes new entries."""
    there = next((place for place in (folder.absolute(), *folder.absolute().parents) if place.exists()), Path("/"))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise ArtefactError(
            f"received the output {folder} below {there}, where nothing can be written; expected a folder with write "
            "permission; choose another path"
        )


def apart(file: Path, folder: Path) -> None:
    """The file is none of those that a student in this folder is made of."""
    if os.path.realpath(file) in {os.path.realpath(folder / name) for name in (CONFIG, WEIGHTS, REPORT, CARD)}:
        raise ArtefactError(
            f"received the output {file}, a part of the student itself; expected another file; choose another path"
        )
