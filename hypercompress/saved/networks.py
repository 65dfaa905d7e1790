"""A meta-trained network on disk: its weights as safetensors and a JSON beside them, hashed."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from hypercompress.errors import ArtefactError
from hypercompress.saved.replacing import replaced

CONFIG = "config.json"
Network = TypeVar("Network", bound=nn.Module)


def write_network(network: nn.Module, folder: Path, weights: str, version: int, card: Mapping[str, Any] | None) -> None:
    """Write the weights and ``config.json``: format, hash, shape (``network.config``) and ``card``, of the training.

    They take the place of the old ones together (`replaced`): a full disk or an interrupt leaves the old network.
    """
    data = save({key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()})
    shape: Any = network.config
    digest = hashlib.sha256(data).hexdigest()
    config = {"format": version, "sha256": digest, "config": asdict(shape), "training": dict(card or {})}
    with replaced(folder, last=CONFIG) as staging:
        (staging / weights).write_bytes(data)
        (staging / CONFIG).write_bytes((json.dumps(config, indent=2) + "\n").encode())


def read_network(
    folder: Path, weights: str, version: int, build: Callable[[dict[str, Any]], Network], what: str
) -> Network:
    """Read and verify such a folder.

    Args:
        build: the network of a shape, as ``config.json`` has it.
        what: kind of network, for messages.

    Raises:
        ArtefactError: missing, altered, of another format, or with weights that are not finite.
    """
    try:
        config = json.loads((folder / CONFIG).read_text())
        data = (folder / weights).read_bytes()
        if config["format"] != version:
            raise ArtefactError(
                f"received the {what} {folder} of format {config['format']}; expected format {version}, as this "
                "version of hypercompress reads it; train it again, or take the version that wrote it"
            )
        if hashlib.sha256(data).hexdigest() != config["sha256"]:
            raise ArtefactError(
                f"received the {what} {folder}, altered; expected {weights} with the hash in {CONFIG}; copy it again"
            )
        # What it reads is in single precision, whatever the file or torch's default dtype, in which it is built, is in.
        network = build(config["config"]).float()
        state = load(data)
        network.load_state_dict(state)
        if not all(bool(value.isfinite().all()) for value in state.values()):
            raise ArtefactError(
                f"received the {what} {folder} with NaN or infinity in {weights}; expected numbers; train it again, "
                "with a lower learning rate"
            )
    except (FileNotFoundError, ValueError, KeyError, TypeError, SafetensorError, RuntimeError) as error:
        raise ArtefactError(
            f"received the {what} folder {folder} ({error}); expected {CONFIG} and {weights} that belong together; "
            "check the path"
        ) from error
    return network.eval()
