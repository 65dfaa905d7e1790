"""Many of the numbers of README and docs, one program after the other: costs of ``generate``, the menu of convolutions,
ResNet-18, latency budgets, EfficientNet-Lite0, and transfer without steps.

    python -m benchmarks --assets ASSETS [--teacher FOLDER]

Not among them, each a program of its own: ``benchmarks.heldout``, ``without_images``, ``few_images``, ``steady``,
``speed``, ``exports``, ``int8``, and all that takes steps but ResNet-18's 200. (``make bench`` runs
``benchmarks.resnet18`` alone.)

ASSETS holds ``FashionMNIST/raw``, ``photos/{train,val}`` and ``efficientnet_lite0.safetensors``. The teacher is trained
if none is given. Two CPU cores, about two hours.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks import efficientnet_lite0, generate_cost, generate_large, latency, menu, pilot, resnet18, transfer
from benchmarks.shared.common import say
from benchmarks.shared.teacher import train_teacher


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True, help="folder with images and pretrained weights")
    parser.add_argument("--teacher", type=Path, metavar="FOLDER", help="trained ResNet-18 (default: train it)")
    options = parser.parse_args(words)
    data = f"fashion_mnist:{options.assets}"
    common = ["--data", data, "--teacher", str(options.teacher or train_teacher(data))]
    say("== time and memory of generate")
    generate_cost.main(common)
    generate_large.main([])
    say("== the two forms of a convolution")
    menu.main(common)
    say("== the recipe of the distillation")
    pilot.main(common)
    say("== ResNet-18")
    resnet18.main(common)
    say("== the latency budget")
    latency.main([])
    say("== EfficientNet-Lite0")
    efficientnet_lite0.main(["--assets", str(options.assets)])
    say("== fast transfer, without steps")
    transfer.main(["--assets", str(options.assets), "--steps", "0"])


if __name__ == "__main__":
    main()
