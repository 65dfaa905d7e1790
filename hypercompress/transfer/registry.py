"""Transfer networks by name and on disk: safetensors and JSON, hashed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypercompress.data import expanded
from hypercompress.errors import GeneratorError
from hypercompress.saved.networks import read_network, write_network
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
    folder = RELEASED if str(name) == "auto" else expanded(name)
    if not folder.is_dir():
        raise GeneratorError(
            f"received the transfer network '{name}'; expected auto, none or the folder of one; check the path"
        )
    return read_network(folder, WEIGHTS, FORMAT, _build, "transfer network")


def save_network(network: TransferNetwork, folder: Path, card: Mapping[str, Any] | None = None) -> None:
    """Write a folder that `load_network` reads; ``card`` tells of the training."""
    write_network(network, folder, WEIGHTS, FORMAT, card)


def _build(shape: dict[str, Any]) -> TransferNetwork:
    return TransferNetwork(TransferConfig(**{**shape, "roles": tuple(Role(role) for role in shape["roles"])}))
