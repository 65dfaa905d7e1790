"""A student folder on disk: data only, hashed, and written all or nothing.

config.json         format version, architecture, ranks, SHA-256 of the weights
model.safetensors   every parameter and buffer; tied tensors once
report.json         what was compressed and how well
README.md           the model card
"""

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hypercompress.card import model_card
from hypercompress.errors import ArtefactError

FORMAT = 2  # 1: every layer factored on one side, nothing unpacked
WEIGHTS, CONFIG, REPORT, CARD = "model.safetensors", "config.json", "report.json", "README.md"


@dataclass(frozen=True)
class Saved:
    """What a student folder holds."""

    config: Mapping[str, Any]
    report: Mapping[str, Any]
    state: Mapping[str, Tensor]


@contextlib.contextmanager
def whole_folder(folder: Path, overwrite: bool) -> Iterator[Path]:
    """A temporary folder beside ``folder`` that takes its place when the block ends well, and vanishes otherwise.

    On Linux the two change places in one system call. Elsewhere, between moving the old folder aside and the new one
    in, a kill leaves the old one as ``.NAME.old``, complete. What a killed process left is cleared by the next one.

    Raises:
        ArtefactError: ``folder`` exists and ``overwrite`` is false, or the disk refuses.
    """
    refuse_existing(folder, overwrite)
    try:
        with staging_beside(folder) as staging:
            yield staging
            for path in staging.iterdir():
                path.chmod(0o644)  # safetensors writes files that nobody else may read
                sync(path)
            staging.chmod(0o755)
            _exchange(staging, folder)
    except (OSError, SafetensorError) as error:
        if isinstance(error, ArtefactError):
            raise
        raise ArtefactError(
            f"received '{error}' while writing {folder}; expected room and permission there; what was there before "
            "is unchanged"
        ) from error


@contextlib.contextmanager
def staging_beside(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path`` that is gone when the block ends. Those of killed processes go first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(path)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.new-{os.getpid()}-", dir=path.parent))
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def refuse_existing(folder: Path, overwrite: bool) -> None:
    """Raises ArtefactError if ``folder`` is in the way; cheap, so call it before the work starts."""
    if folder.exists() and not folder.is_dir():
        raise ArtefactError(f"received the output {folder}, a file; expected a folder; choose another path")
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise ArtefactError(
                f"received the output folder {folder}, which exists; expected a new path; choose another or pass "
                "--overwrite"
            )
        if not (folder / CONFIG).is_file():
            raise ArtefactError(
                f"received --overwrite for {folder}, which is no student folder (no {CONFIG}); expected one; remove "
                "it yourself or choose another path"
            )


def sync(path: Path) -> None:
    """Wait until the file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _clear_leftovers(folder: Path) -> None:
    """Remove temporary folders of processes that are no more."""
    for path in folder.parent.glob(f".{folder.name}.new-*-*"):
        pid = path.name.split(".new-")[1].split("-")[0]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


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


def save(
    folder: Path, *, state: Mapping[str, Tensor], config: Mapping[str, Any], report: Mapping[str, Any], overwrite: bool
) -> None:
    """Write a student folder; see `whole_folder` for what a failure leaves."""
    with whole_folder(folder, overwrite) as staging:
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
        (staging / CONFIG).write_text(json.dumps({**header, **config}, indent=2, sort_keys=True) + "\n")
        (staging / REPORT).write_text(json.dumps(report, indent=2) + "\n")
        (staging / CARD).write_text(model_card(config, report))


def _untied(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors that are one and the same are stored under their first name; the others become aliases."""
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[Any, str] = {}
    for name, tensor in state.items():
        key = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape), tensor.stride())
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
    missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise ArtefactError(
            f"received {folder} without {' and '.join(missing)}; expected a student folder; check the path"
        )
    try:
        config = json.loads((folder / CONFIG).read_text())
        report = json.loads((folder / REPORT).read_text()) if (folder / REPORT).is_file() else {}
        known = {"format", "sha256", "aliases", "architecture", "ranks"} <= set(config)
    except (ValueError, TypeError) as error:
        raise ArtefactError(f"received {folder} with unreadable JSON ({error}); expected a student folder") from error
    if not known:
        raise ArtefactError(f"received {folder / CONFIG} without the keys of a student; expected a student folder")
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
        state.update({alias: state[name] for alias, name in config["aliases"].items()})
    except KeyError as error:
        raise ArtefactError(
            f"received {folder / CONFIG} with an alias of {error}, which {WEIGHTS} lacks; expected the folder as it "
            "was saved; copy it again"
        ) from error
    return Saved(config, report, state)


def load_state(model: nn.Module, saved: Saved, folder: Path) -> None:
    """Strict load; every key and shape that does not fit is listed at once."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    got = {name: tuple(tensor.shape) for name, tensor in saved.state.items()}
    faults = [f"missing {name}" for name in expected.keys() - got.keys()]
    faults += [f"unexpected {name}" for name in got.keys() - expected.keys()]
    faults += [f"{n} is {got[n]} not {expected[n]}" for n in expected.keys() & got.keys() if expected[n] != got[n]]
    if faults:
        raise ArtefactError(
            f"received {folder} whose weights do not fit its network: {'; '.join(sorted(faults))}; expected the "
            "network that was saved; check the skeleton and the timm version"
        )
    state = model.state_dict()  # it carries the versions that some modules ask for (MNASNet)
    state.update(saved.state)
    model.load_state_dict(state, strict=True)
