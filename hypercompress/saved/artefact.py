"""A student folder on disk: data only, hashed, and written all or nothing.

config.json         format version, architecture, ranks, SHA-256 of the weights
model.safetensors   every parameter and buffer; tied tensors once
report.json         what was compressed and how well
README.md           the model card
"""

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeGuard

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_bytes
from safetensors.torch import load_file, save_file
from safetensors.torch import save as as_bytes
from torch import Tensor

from hypercompress.data import expanded
from hypercompress.errors import ArtefactError, listed
from hypercompress.saved.card import model_card
from hypercompress.saved.replacing import in_the_way, leftover, name_fault, replaced

FORMAT = 2  # 1: every layer factored on one side, nothing unpacked
KEYS = frozenset({"format", "sha256", "aliases", "architecture", "ranks"})  # of every student's config.json
AS_SAVED = "expected the folder as it was saved; copy it again"
WEIGHTS, CONFIG, REPORT, CARD = "model.safetensors", "config.json", "report.json", "README.md"


@dataclass(frozen=True)
class Saved:
    """What a student folder holds."""

    config: Mapping[str, Any]
    report: Mapping[str, Any]
    state: Mapping[str, Tensor]


@contextlib.contextmanager
def whole_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder that takes the place of ``folder`` when the block ends well; see `replaced`.

    Raises:
        ArtefactError: ``folder`` exists and ``overwrite`` is false, or the disk refuses.
    """
    refuse_existing(folder, overwrite)
    try:
        with replaced(folder, last=CONFIG, overwrite=overwrite) as staging:
            yield staging
    except (OSError, SafetensorError) as error:
        if isinstance(error, ArtefactError):
            raise
        raise ArtefactError(
            f"received '{error}' while writing {folder}; expected room and permission there; what was there before "
            "is unchanged"
        ) from error


def refuse_existing(folder: Path, overwrite: bool) -> None:
    """Raises ArtefactError if ``folder`` is in the way or no name; cheap, so call it before the work starts."""
    if (fault := name_fault(folder)) is not None:
        raise ArtefactError(f"received the output {folder}, {fault}; choose another path")
    if folder.exists() and not folder.is_dir():
        raise ArtefactError(f"received the output {folder}, a file; expected a folder; choose another path")
    if folder.is_dir() and not all(leftover(path, folder.resolve()) for path in folder.iterdir()):
        if not overwrite:
            raise in_the_way(folder)
        if not _is_student(folder):
            raise ArtefactError(
                f"received --overwrite for {folder}, which is no student folder (no {CONFIG} of one); expected one; "
                "remove it yourself or choose another path"
            )


def _is_student(folder: Path) -> bool:
    """Other programs' folders have a ``config.json``, too: only a student's has all of `KEYS`."""
    try:
        return set(json.loads((folder / CONFIG).read_text(encoding="utf-8"))) >= KEYS
    except (OSError, ValueError, TypeError):
        return False


def save(
    folder: Path, *, state: Mapping[str, Any], config: Mapping[str, Any], report: Mapping[str, Any], overwrite: bool
) -> None:
    """Write a student folder; see `whole_folder` for what a failure leaves.

    Raises:
        ArtefactError: the state holds more than tensors, or some that safetensors cannot hold.
    """
    if others := [name for name, value in state.items() if not isinstance(value, Tensor)]:
        raise ArtefactError(
            f"received a network whose state has {listed(others)}, no tensors; expected tensors alone, which are "
            f"all that {WEIGHTS} holds; keep it in buffers (register_buffer), or return a tensor from get_extra_state"
        )
    if unheld := [f"{name} ({fault})" for name, value in state.items() if (fault := _fault(value)) is not None]:
        raise ArtefactError(
            f"received a network whose state has {listed(unheld)}; expected dense tensors of a dtype that "
            f"{WEIGHTS} holds; convert them, or leave them out of the state "
            "(register_buffer(..., persistent=False))"
        )
    told = _report_text(report)
    with whole_folder(expanded(folder), overwrite) as staging:
        stored, aliases = _untied(state)
        save_file(stored, staging / WEIGHTS, metadata={"format": "pt"})
        header = {
            "format": FORMAT,
            "hypercompress": version("hypercompress"),
            "torch": torch.__version__,
            "timm": version("timm"),
            "sha256": _sha256(staging / WEIGHTS),
            "aliases": aliases,
        }
        _write_text(staging / CONFIG, json.dumps({**header, **config}, indent=2, sort_keys=True) + "\n")
        _write_text(staging / REPORT, told)
        _write_text(staging / CARD, model_card(config, report))


def _write_text(path: Path, text: str) -> None:
    """In one encoding everywhere; names of files that are no text in it are written as escapes."""
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_report(folder: Path) -> dict[str, Any]:
    """``report.json`` of a student folder, alone; empty if there is none.

    Raises:
        ArtefactError: what other commands read in it is not what was written.
    """
    file = folder / REPORT
    found: Any = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if not is_report(found):
        raise ArtefactError(f"received {file} that is no report; {AS_SAVED}")
    return dict(found)


def is_report(value: Any) -> bool:
    """Whether what others read in it is what they expect there."""
    tables = [value, value.get("transfer", {})] if isinstance(value, dict) else [value]
    return all(isinstance(table, dict) and is_names(table.get("classes") or []) for table in tables)


def _report_text(report: Mapping[str, Any]) -> str:
    """``report.json``.

    Raises:
        ArtefactError: JSON cannot hold it, or it could not be read again.
    """
    try:
        text = json.dumps(report, indent=2) + "\n"
    except (TypeError, ValueError) as error:
        raise ArtefactError(
            f"received a student whose report JSON cannot hold ({error}); expected texts, numbers, lists and tables; "
            "convert what was put into student.report"
        ) from error
    if not is_report(json.loads(text)):
        raise ArtefactError(
            "received a student whose report names its classes by something else than a list of texts; expected one, "
            "as the folder could not be loaded; set student.report['transfer']['classes'] or student.report['classes']"
        )
    return text


def is_names(value: Any) -> TypeGuard[list[str]]:
    """Whether it is a list of texts."""
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _fault(tensor: Tensor) -> str | None:
    """The layout or the dtype that a file of safetensors cannot hold; ``None`` if it holds both."""
    if tensor.layout is not torch.strided:
        return str(tensor.layout)
    return None if _held(tensor.dtype) else str(tensor.dtype)


@functools.cache
def _held(dtype: torch.dtype) -> bool:
    """Only trying tells: versions of safetensors differ, and none says what it holds."""
    try:
        read_bytes(as_bytes({"tried": torch.empty(0, dtype=dtype)}))
    except (KeyError, SafetensorError):
        return False
    return True


def _untied(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors that are one and the same are stored under their first name; the others become aliases."""
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, tensor in state.items():
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
        key = (*place, tensor.dtype, tensor.is_conj(), tensor.is_neg())  # views may read one memory in two ways
        if tensor.numel() and key in first:
            aliases[name] = first[key]
        else:
            first[key] = name
            stored[name] = tensor.detach().cpu().contiguous().clone()
    return stored, aliases


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(folder: Path) -> Saved:
    """Read and verify a student folder.

    Raises:
        ArtefactError: missing, incomplete, altered, unreadable, or of a later format.
    """
    folder = expanded(folder)
    _require_text(folder)
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ArtefactError(
            f"received {folder} without {' and '.join(missing)}; expected a student folder; check the path"
        )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        report = read_report(folder)
        known = isinstance(config, dict) and set(config) >= KEYS
    except (ValueError, TypeError) as error:
        raise ArtefactError(f"received {folder} with unreadable JSON ({error}); expected a student folder") from error
    if not known:
        raise ArtefactError(f"received {folder / CONFIG} without the keys of a student; expected a student folder")
    aliases = config["aliases"]
    if type(config["format"]) is not int or not (isinstance(aliases, dict) and is_names([*aliases.values()])):
        raise ArtefactError(
            f"received {folder / CONFIG} with a format that is no whole number, or aliases that are no table of names; "
            f"{AS_SAVED}"
        )
    if config["format"] > FORMAT:
        raise ArtefactError(
            f"received a student of format {config['format']}; expected at most {FORMAT}; upgrade hypercompress"
        )
    if _sha256(folder / WEIGHTS) != config["sha256"]:
        raise ArtefactError(
            f"received {folder / WEIGHTS} whose SHA-256 differs from {CONFIG}; expected the file as it was saved; "
            "copy the folder again"
        )
    try:
        state = load_file(folder / WEIGHTS)
    except SafetensorError as error:
        raise ArtefactError(f"received a corrupt {folder / WEIGHTS} ({error}); copy the folder again") from error
    try:
        state.update({alias: state[name] for alias, name in aliases.items()})
    except KeyError as error:
        raise ArtefactError(
            f"received {folder / CONFIG} with an alias of {error}, which {WEIGHTS} lacks; expected the folder as it "
            "was saved; copy it again"
        ) from error
    return Saved(config, report, state)


def _require_text(folder: Path) -> None:
    """Raises ArtefactError if the path is not UTF-8: safetensors reads from no other."""
    try:
        os.fsencode(folder).decode()
    except UnicodeDecodeError as error:
        raise ArtefactError(
            f"received the student folder {folder}, a path that is not UTF-8; expected one that is; rename the folder"
        ) from error
