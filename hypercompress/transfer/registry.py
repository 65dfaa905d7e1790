"""Transfer networks by name and on disk: safetensors and JSON, hashed."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save

from hypercompress.errors import ArtefactError, GeneratorError
from hypercompress.transfer.adaptable import Role
from hypercompress.transfer.config import TransferConfig
from hypercompress.transfer.network import TransferNetwork

RELEASED = Path(__file__).parents[1] / "pretrained" / "transfer"
FORMAT = 1
WEIGHTS = "transfer.safetensors"


def load_network(name: str | Path) -> TransferNetwork | None:
    """A transfer network by name.

    Args:
        name: ``auto``: the released one, ``None`` if this version has none; ``none``: ``None``, which is ridge
            regression on the model as it is; or the folder of a network.

    Raises:
        GeneratorError: no such name or folder. ArtefactError: a folder that cannot be read.
    """
    if str(name) == "none" or (str(name) == "auto" and not RELEASED.is_dir()):
        return None
    folder = RELEASED if str(name) == "auto" else Path(name)
    if not folder.is_dir():
        raise GeneratorError(
            f"received the transfer network '{name}'; expected auto, none or the folder of one; check the path"
        )
    return read_network(folder)


def save_network(network: TransferNetwork, folder: Path, card: Mapping[str, Any] | None = None) -> None:
    """Write the weights and ``config.json`` (shape, roles, hash and whatever ``card`` tells of the training)."""
    folder.mkdir(parents=True, exist_ok=True)
    data = save({key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()})
    (folder / WEIGHTS).write_bytes(data)
    config = {
        "format": FORMAT,
        "sha256": hashlib.sha256(data).hexdigest(),
        "config": asdict(network.config),
        "training": dict(card or {}),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def read_network(folder: Path) -> TransferNetwork:
    """Read and verify the folder of a transfer network.

    Raises:
        ArtefactError: missing, altered, or of another format.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        data = (folder / WEIGHTS).read_bytes()
        if config["format"] != FORMAT or hashlib.sha256(data).hexdigest() != config["sha256"]:
            raise ArtefactError(
                f"received the transfer network {folder}, altered or of another format; expected format {FORMAT} with "
                "the hash in config.json; copy it again"
            )
        shape = {**config["config"], "roles": tuple(Role(role) for role in config["config"]["roles"])}
        network = TransferNetwork(TransferConfig(**shape))
        network.load_state_dict(load(data))
    except (FileNotFoundError, ValueError, KeyError, TypeError, SafetensorError, RuntimeError) as error:
        raise ArtefactError(
            f"received the folder {folder} of a transfer network ({error}); expected config.json and {WEIGHTS} that "
            "belong together; check the path"
        ) from error
    return network.eval()
