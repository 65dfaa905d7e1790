"""Fast transfer: a trained model adapted to a new task from a few labelled images."""

from hypercompress.transfer.adapt import adapt
from hypercompress.transfer.config import TransferConfig
from hypercompress.transfer.meta import Outcome, episode_outcome
from hypercompress.transfer.network import TransferNetwork
from hypercompress.transfer.registry import load_network, save_network
from hypercompress.transfer.ridge import Ridge, fit_ridge

__all__ = [
    "Outcome",
    "Ridge",
    "TransferConfig",
    "TransferNetwork",
    "adapt",
    "episode_outcome",
    "fit_ridge",
    "load_network",
    "save_network",
]
