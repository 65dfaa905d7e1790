"""Generators by name, and hypernetworks on disk: safetensors and JSON, hashed."""

import difflib
from dataclasses import replace
from pathlib import Path
from typing import Any

from hypercompress.data import expanded
from hypercompress.errors import GeneratorError
from hypercompress.generator.analytic import ANALYTIC
from hypercompress.generator.config import HypernetConfig
from hypercompress.generator.hypernetwork import HypernetGenerator, Hypernetwork
from hypercompress.generator.protocol import Generator, without_data
from hypercompress.running.calling import Progress
from hypercompress.saved.networks import read_network, write_network

RELEASED = Path(__file__).parents[1] / "pretrained" / "hypernet"
NAMES = ("auto", "hypernet", *ANALYTIC)
WEIGHTS = "hypernet.safetensors"
FORMAT = 3  # 1: without two-sided layers and the refit; 2: told of the distillation steps to come


def load_generator(name: str | Path, has_data: bool = True, progress: Progress | None = None) -> Generator:
    """A generator by name, or a meta-trained hypernetwork by folder.

    Args:
        name: ``hypernet`` is the released hypernetwork; ``auto`` too, but without data, and without noise in their
            place (`preparation.prepare`), it is ``svd``, which does better on networks not seen before (LOG.md);
            analytic names; or a folder.
        has_data: whether calibration data will be given; analytic generators that need some refuse early.
        progress: called with ``"factorize"``, the number of layers done and the name of the next.

    Raises:
        GeneratorError: unknown, or needs data. ArtefactError: a folder that cannot be read.
    """
    text = "svd" if str(name) == "auto" and not has_data else str(name)
    if text in ANALYTIC:
        generator = ANALYTIC[text]
        if generator.needs_data and not has_data:
            raise without_data(text)
        return generator if progress is None else replace(generator, progress=progress)
    if text in ("auto", "hypernet"):
        return HypernetGenerator(load_hypernetwork(RELEASED), progress=progress)
    folder = expanded(text)
    if folder.is_dir():
        return HypernetGenerator(load_hypernetwork(folder), name=folder.name, progress=progress)
    near = difflib.get_close_matches(text, NAMES, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise GeneratorError(
        f"received the generator '{text}'; expected one of {', '.join(NAMES)} or the folder of a hypernetwork{hint}"
    )


def save_hypernetwork(network: Hypernetwork, folder: Path, card: dict[str, Any] | None = None) -> None:
    """Write a folder that `load_hypernetwork` reads; ``card`` tells of the training."""
    write_network(network, folder, WEIGHTS, FORMAT, card)


def load_hypernetwork(folder: Path) -> Hypernetwork:
    """Read and verify a hypernetwork folder.

    Raises:
        ArtefactError: missing, altered, or of another format.
    """
    return read_network(folder, WEIGHTS, FORMAT, lambda shape: Hypernetwork(HypernetConfig(**shape)), "hypernetwork")
