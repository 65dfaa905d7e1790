"""Ours in the transfer benchmark: `hypercompress.transfer.adapt`, with and without the transfer network."""

import time
from pathlib import Path

import torch

from benchmarks.backbones import BATCH, Backbone
from benchmarks.common import digest
from benchmarks.passes import counting
from benchmarks.tuning import Outcome, accuracy
from hypercompress.data import Episode
from hypercompress.transfer import adapt
from hypercompress.transfer.registry import RELEASED

ADAPTED = ("adapt", "adapt-plain")


def network_folder(method: str, network: str) -> Path | None:
    """Where the transfer network of a method lies; ``None``: it has none.

    Args:
        network: ``auto`` for the released one, or a folder.
    """
    folder = RELEASED if network == "auto" else Path(network)
    return folder if method == "adapt" and folder.is_dir() else None


def steps_of(method: str, network: str, steps: list[int]) -> list[int]:
    """The numbers of steps at which a method is something of its own: without a network and steps it is ridge."""
    if method == "adapt":
        return steps if network_folder(method, network) else []
    return [count for count in steps if count]


def network_digest(method: str, network: str) -> str:
    """What the network adds to the digest of the backbone's weights."""
    folder = network_folder(method, network)
    return f"+{digest(folder)}" if folder else ""


def adapt_episode(
    backbone: Backbone, last: str, episode: Episode, method: str, steps: int, network: str, seed: int
) -> Outcome:
    """One episode by one of `ADAPTED`.

    Args:
        last: see `counting`.
        network: see `network_folder`.
        seed: of what `adapt` draws.
    """
    folder, start = network_folder(method, network), time.perf_counter()
    with counting(backbone.model, last) as passes:
        student = adapt(
            backbone.model, episode.support, episode.support_labels, steps=steps, network=folder or "none", seed=seed
        )
        seconds = time.perf_counter() - start
        with passes.paused(), torch.no_grad():
            logits = torch.cat([student(batch) for batch in episode.query.split(BATCH)])
    images = len(episode.support)
    right = accuracy(logits, episode.query_labels)
    return Outcome(right, passes.forward / images, passes.backward / images, seconds)
