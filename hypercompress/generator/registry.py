"""Generators by name, and hypernetworks on disk: safetensors and JSON, hashed."""

import difflib
import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hypercompress.calling import Progress
from hypercompress.errors import ArtefactError, GeneratorError
from hypercompress.generator.analytic import ANALYTIC
from hypercompress.generator.config import HypernetConfig
from hypercompress.generator.hypernetwork import HypernetGenerator, Hypernetwork
from hypercompress.generator.protocol import Generator

RELEASED = Path(__file__).parents[1] / "pretrained" / "hypernet"
NAMES = ("auto", "hypernet", *ANALYTIC)
FORMAT = 2  # 1: without two-sided layers and the refit


def load_generator(
    name: str | Path, has_data: bool = True, steps: int = 0, progress: Progress | None = None
) -> Generator:
    """A generator by name, or a meta-trained hypernetwork by folder.

    Args:
        name: ``auto`` and ``hypernet`` are the released hypernetwork; analytic names; or a folder.
        has_data: whether calibration data will be given; analytic generators that need some refuse early.
        steps: distillation steps that will follow.
        progress: called with ``"factorize"``, the number of layers done and the name of the next.

    Raises:
        GeneratorError: unknown, or needs data. ArtefactError: a folder that cannot be read.
    """
    text = str(name)
    if text in ANALYTIC:
        generator = ANALYTIC[text]
        if generator.needs_data and not has_data:
            raise GeneratorError(
                f"received no calibration data; expected some for generator '{text}', which weighs directions by "
                "measured curvature; pass --data, or choose svd, prior or hypernet"
            )
        return generator if progress is None else replace(generator, progress=progress)
    if text in ("auto", "hypernet"):
        return HypernetGenerator(load_hypernetwork(RELEASED), steps, progress=progress)
    if Path(text).is_dir():
        return HypernetGenerator(load_hypernetwork(Path(text)), steps, name=Path(text).name, progress=progress)
    near = difflib.get_close_matches(text, NAMES, 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise GeneratorError(
        f"received the generator '{text}'; expected one of {', '.join(NAMES)} or the folder of a hypernetwork{hint}"
    )


def save_hypernetwork(network: Hypernetwork, folder: Path, card: dict[str, Any] | None = None) -> None:
    """Write ``hypernet.safetensors`` and ``config.json`` (shape, hash and whatever ``card`` tells of the training)."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "hypernet.safetensors"
    save_file({k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}, weights)
    weights.chmod(0o644)
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    config = {"format": FORMAT, "sha256": digest, "config": asdict(network.config), "training": card or {}}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def load_hypernetwork(folder: Path) -> Hypernetwork:
    """Read and verify a hypernetwork folder.

    Raises:
        ArtefactError: missing, altered, or of another format.
    """
    try:
        config = json.loads((folder / "config.json").read_text())
        data = (folder / "hypernet.safetensors").read_bytes()
        if config["format"] != FORMAT or hashlib.sha256(data).hexdigest() != config["sha256"]:
            raise ArtefactError(
                f"received the hypernetwork {folder}, altered or of another format; expected format {FORMAT} with the "
                "hash in config.json; copy it again"
            )
        network = Hypernetwork(HypernetConfig(**config["config"]))
        network.load_state_dict(load_file(folder / "hypernet.safetensors"))
    except (FileNotFoundError, ValueError, KeyError, TypeError, SafetensorError, RuntimeError) as error:
        raise ArtefactError(
            f"received the hypernetwork folder {folder} ({error}); expected config.json and hypernet.safetensors that "
            "belong together; check the path"
        ) from error
    return network.eval()
