"""The statistics of a zoo's teachers on disk, so that a second start of meta-training and a resumed one read them.

One safetensors file for each teacher and set of calibration images. Its name and its header hold a digest of all that
the statistics depend on, so another weight, image, seed or version asks for another file; the header also holds a
digest of what is in it.
"""

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from lightning.pytorch.utilities import rank_zero_info
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hypercompress.meta import Statistics, measure_statistics, packed, restored
from hypercompress.saved.whole_file import whole_file

FORMAT = 2  # of the files


def recall(
    folder: Path | None, name: str, teacher: nn.Module, batches: Sequence[Tensor], *, seed: int = 0
) -> Statistics:
    """The statistics of a teacher from ``folder``, or measured and kept there.

    What was measured goes through the same packing as what was read, so both give the same bits. A file that is damaged
    or somebody else's is replaced, and a line says so; a folder that cannot be written costs time, not the result.

    Args:
        folder: of the files; made if need be. None: nothing is read or written.
        name: of the teacher; the files' names begin with it.
        teacher, batches, seed: as `measure_statistics` takes them.
    """
    if folder is None:
        return measure_statistics(teacher, batches, seed=seed)
    key = digest_of(teacher, batches, seed)
    path = folder / f"{name}-{key[:16]}.safetensors"
    device = batches[0].device
    found = _read(path, key, device) if path.is_file() else None
    if found is not None:
        return found
    tensors, text = packed(measure_statistics(teacher, batches, seed=seed))
    _write(path, tensors, {"key": key, "spec": text, "sha256": _content(tensors, text)})
    return restored({name: tensor.to(device) for name, tensor in tensors.items()}, text)


def digest_of(teacher: nn.Module, batches: Sequence[Tensor], seed: int) -> str:
    """SHA-256 of all that the statistics depend on: structure and weights, images in their batches, seed, versions."""
    digest = hashlib.sha256()
    device = batches[0].device
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    digest.update(repr((FORMAT, version("hypercompress"), torch.__version__, kind, seed)).encode())
    digest.update(repr(teacher).encode())
    for name, tensor in [*teacher.state_dict().items(), *((str(place), x) for place, x in enumerate(batches))]:
        _add(digest, name, tensor)
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", name: str, tensor: Tensor) -> None:
    digest.update(repr((name, str(tensor.dtype), tuple(tensor.shape))).encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _content(tensors: Mapping[str, Tensor], text: str) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        _add(digest, name, tensors[name])
    return digest.hexdigest()


def _read(path: Path, key: str, device: torch.device) -> Statistics | None:
    try:
        with safe_open(path, "pt") as file:
            header = file.metadata() or {}
            # Copied: a tensor inside the file lies at any address, and sums depend on the alignment in their last bits.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  (no mapping)
        if header["key"] == key and header["sha256"] == _content(tensors, header["spec"]):
            return restored({name: tensor.to(device) for name, tensor in tensors.items()}, header["spec"])
    except (OSError, SafetensorError, ValueError, TypeError, KeyError):
        pass  # said below, as for a file whose digests do not fit
    rank_zero_info(f"zoo: {path} is damaged or not ours; measured again and replaced")
    return None


def _write(path: Path, tensors: Mapping[str, Tensor], header: dict[str, str]) -> None:
    """The file whole or not at all; ranks that measured the same write the same."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path, overwrite=True) as staged:
            save_file(dict(tensors), staged, metadata=header)
    except (OSError, SafetensorError) as error:
        rank_zero_info(f"zoo: {path} cannot be written ({error}); the next start measures again")
