"""Generators on a real network and real photographs: EfficientNet-Lite0 with its ImageNet weights, or Lite1, or Lite2.

    python -m benchmarks.efficientnet_lite0 --assets ASSETS [--network lite0|lite1|lite2] [--seeds 3]
        [--synthetic-images N] [--out benchmarks/results]

ASSETS holds ``efficientnet_lite0.safetensors`` (timm's ``tf_efficientnet_lite0``, 224 pixels, mean and std 0.5) and
``photos/{train,val}``; `benchmarks.lite_weights` puts the weights of the other two there (240 and 260 pixels), on which
nothing was chosen. Statistics come from the photographs of ``train``, each as it is and twice cropped and flipped at
random; agreement with the teacher and KL are measured on those of ``val``. Nothing is trained. Sizes are shares of the
parameters of the layers that may be factored. Without photographs: weights alone, 256 synthetic images, and 256 images
of 1/f noise with the BatchNorms renormalised. Writes ``efficientnet_lite0.csv`` and ``efficientnet_lite0.png``, or
those of the network; rows that are there are not made again. Two CPU cores, about ten minutes a seed; 96 synthetic
images took 26. Rows do not say how many those were: for another number another --out. As a yardstick
``efficientnet_lite0_itself.csv`` has the network against itself on photographs that are slightly changed, whatever rows
are asked for.
"""

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor, nn

from benchmarks.shared.common import RESULTS, Results, digest, fidelity, read_set, say
from benchmarks.shared.figures import by_share, curves, save, values
from benchmarks.shared.sweep import DATA, KEY, WITH_DATA, WITHOUT_DATA, Generators, Sweep
from hypercompress.architecture import Architecture, load_timm
from hypercompress.data import Preprocess, loader, open_data
from hypercompress.preparation import Plan, prepare
from hypercompress.synthetic.inversion import synthesize

SHARES = (0.8, 0.65, 0.5, 0.35, 0.25)
CROPS = 2  # random crops of each photograph, beside the photograph itself
BATCH = 32
NETWORKS = ("lite0", "lite1", "lite2")
MOVE = 4  # pixels
# What comes in at the left of a moved photograph repeats its edge.
CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "mirrored": lambda images: images.flip(-1),
    f"moved right by {MOVE} pixels": lambda images: F.pad(images, (MOVE, 0, 0, 0), mode="replicate")[..., :-MOVE],
}


def photographs(teacher: nn.Module, folder: str, seed: int, crops: int = CROPS) -> list[Tensor]:
    """Calibration batches in random order: each photograph and so many random crops of it, with flips."""
    random.seed(seed)
    torch.manual_seed(seed)
    parts = []
    for turn in range(1 + crops):
        data = open_data(folder, Preprocess.of(teacher), train=True, augment=turn > 0)
        parts += [images for images, _ in loader(data, batch_size=BATCH)]
    images = torch.cat(parts)
    return list(images[torch.randperm(len(images))].split(BATCH))


def file_of(assets: Path, network: str = NETWORKS[0]) -> Path:
    """Where its weights lie."""
    return assets / f"efficientnet_{network}.safetensors"


def open_teacher(assets: Path, network: str = NETWORKS[0]) -> tuple[nn.Module, Architecture]:
    """The network."""
    return load_timm(
        f"tf_efficientnet_{network}",
        checkpoint=file_of(assets, network),
        pretrained_cfg={"mean": [0.5] * 3, "std": [0.5] * 3},
    )


def on_noise(teacher: nn.Module, size: Sequence[int], seed: int) -> Plan:
    """The network with statistics of 1/f noise, as much of it as usual, its BatchNorms renormalised."""
    noise = torch.cat(synthesize(teacher, size, steps=0, seed=seed))
    return prepare(teacher, noise.split(BATCH), "kfac", renormalize=True, seed=seed)


def make_sweep(
    assets: Path,
    hypernet: str = "hypernet",
    shares: Sequence[float] = SHARES,
    synthetic: int | None = None,
    network: str = NETWORKS[0],
) -> Sweep:
    """Read the network and the photographs; ``synthetic``: how many images are made, as many as usual if ``None``."""
    photos = str(assets / "photos")
    teacher, architecture = open_teacher(assets, network)
    test = read_set(teacher, photos, train=False)
    test = replace(test, labels=torch.full_like(test.labels, -1))  # the folders are no classes of ImageNet

    def measure(data: str, seed: int) -> Plan:
        say(f"measuring the statistics: {data}, seed {seed}")
        batches = None
        if data == "images":
            batches = photographs(teacher, photos, seed)
        elif data == "synthetic":
            size = test.images.shape[1:]
            made = synthesize(teacher, size, synthetic, seed=seed, progress=lambda _, done, _at="": say(f"{done}"))
            batches = list(torch.cat(made).split(BATCH // 2))
        elif data == "noise":
            return on_noise(teacher, test.images.shape[1:], seed)
        return prepare(teacher, batches, "svd", seed=seed)

    return Sweep(measure, architecture, digest(file_of(assets, network)), Generators(hypernet), test, shares)


class Changed(nn.Module):
    """A network that sees other images than it is given."""

    def __init__(self, model: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.model, self.change = model, change

    def forward(self, images: Tensor) -> Tensor:
        answer: Tensor = self.model(self.change(images))
        return answer


def against_itself(teacher: nn.Module, sweep: Sweep, results: Results) -> None:
    """Agreement and KL of the network with itself on the same images, changed: what a student can be held against."""
    for name, change in CHANGES.items():
        made = {"change": name, "weights": sweep.teacher}
        if not results.has(made):
            found = fidelity(teacher, Changed(teacher, change), sweep.test)
            results.add({**made, "agreement": found.agreement, "kl": found.kl, "images": found.images})
            say(f"the network itself, {name}: agreement {found.agreement:.3f}, KL {found.kl:.3f}")


def draw(results: Results, network: str, path: Path) -> None:
    """Agreement and KL against size."""
    figure = Figure((11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    curves(left, results, "agreement", 100)
    curves(right, results, "kl")
    left.set(
        ylabel="same top-1 class as the teacher, %",
        title=f"EfficientNet-{network.title()}, photographs, nothing trained",
    )
    right.set(ylabel="KL(teacher || student), nats")
    for axes in (left, right):
        axes.set_xscale("linear")
        axes.xaxis.set_major_locator(MaxNLocator())
        axes.legend(fontsize=7)
    save(figure, path)


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path, required=True, help="folder with the weights and photos/")
    parser.add_argument("--network", choices=NETWORKS, default=NETWORKS[0], help="which (default: lite0)")
    parser.add_argument("--seeds", type=int, default=3, help="repetitions (default: 3)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the files go (default: benchmarks/results)")
    parser.add_argument("--hypernet", default="hypernet", help="folder of a hypernetwork (default: the released one)")
    choices = sorted({*WITH_DATA, *WITHOUT_DATA})
    parser.add_argument("--only", nargs="+", choices=choices, default=choices, help="make these rows only")
    parser.add_argument("--statistics", nargs="+", choices=list(DATA), default=list(DATA), help="and of these only")
    parser.add_argument("--synthetic-images", type=int, metavar="N", help="of synthetic statistics (default: 256)")
    options = parser.parse_args(words)
    name = file_of(options.assets, options.network).stem
    results = Results(options.out / f"{name}.csv", KEY)
    sweep = make_sweep(options.assets, options.hypernet, synthetic=options.synthetic_images, network=options.network)
    teacher, _ = open_teacher(options.assets, options.network)
    against_itself(teacher, sweep, Results(options.out / f"{name}_itself.csv", ("change",)))
    sweep.run(results, options.seeds, options.only, options.statistics)
    draw(results, options.network, options.out / f"{name}.png")
    for data in values(results, "data"):
        for column, digits, scale in (("agreement", 1, 100.0), ("kl", 3, 1.0)):
            say(f"\n{column}, statistics from: {data}\n\n{by_share(results, data, column, digits, scale)}")


if __name__ == "__main__":
    main()
