"""What calibration images add to the time of a generation, in passes over them, and what memory it takes with them.

    python -m benchmarks.data_cost [--models resnet50 ...] [--images 512] [--batch-size 32] [--timed N]
        [--assets ASSETS] [--out benchmarks/results]

A plain pass is forward and backward with a cross-entropy, gradients of all weights included, as one step of training
would take. A generation with images adds the curvature, the refits and the guard's comparisons. Weights as they are
initialised and noise at 224 x 224 pixels; how many students the guard tries depends on both, so with ASSETS (see
`benchmarks.efficientnet_lite0`) a trained network and photographs follow. Limit: 1.5 plain passes; and at the highest,
beside the images themselves, three times the model plus 2 GB. Writes ``data_cost.csv``. Two CPU cores, with 512 images
ten minutes for a ResNet-50 and half an hour for a ViT-B (with ``--timed 64`` a quarter).
"""

import argparse
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from benchmarks.efficientnet_lite0 import open_teacher
from benchmarks.shared.common import RESULTS, Results, say
from hypercompress.compress import finish
from hypercompress.curvature import measure
from hypercompress.data import Preprocess, loader, open_data
from hypercompress.preparation import prepare
from hypercompress.preparation.example import samples_of_a_pass
from hypercompress.running.batches import pieces
from hypercompress.specs import Budget

MODELS = ("resnet50", "vit_base_patch16_224")
TRAINED = "tf_efficientnet_lite0 (trained)"
LIMIT = 1.5
KEY = ("model", "images", "batch_size", "generator")


def plain(model: nn.Module, batches: Sequence[Tensor]) -> None:
    """Forward and backward over all batches."""
    for batch in batches:
        output = model(batch)
        nn.functional.cross_entropy(output, torch.zeros(len(batch), dtype=torch.long)).backward()
        model.zero_grad(set_to_none=True)


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock time of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak() -> int:
    """The most memory that this process has held, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def costs(model: nn.Module, batches: Sequence[Tensor], generator: str, timed: int | None = None) -> dict[str, float]:
    """Seconds of a plain pass, of a generation with images and without, and of the curvature alone; and the memory of
    the one with images, the model included and the images not. It comes first, in a process that should have done
    nothing else: what another leaves behind would count as its own.

    Args:
        timed: batches on which a pass and the curvature alone are timed, and counted as many times as all have as many;
            ``None``: all.
    """
    some = batches[:timed]
    times = len(batches) / len(some)
    found: dict[str, float] = {}
    before, size = peak(), sum(p.numel() * p.element_size() for p in model.parameters())
    start = time.perf_counter()
    plan = prepare(model, batches, generator)
    finish(plan, Budget(params=0.5))
    found["seconds_with"] = time.perf_counter() - start
    found["megabytes"], found["megabytes_model"] = (peak() - before + size) / 1e6, size / 1e6
    found["seconds_without"] = seconds(lambda: finish(prepare(model, None, generator), Budget(params=0.5)))
    plain(model, some[:1])  # the first pass after a generation takes half as long again: its memory is all new
    # In turns, as far as once is a turn: a pass, the curvature, a pass.
    first = seconds(lambda: plain(model, some))
    size = samples_of_a_pass(plan.spec)  # as `prepare` does it on a CPU
    found["seconds_curvature"] = times * seconds(lambda: measure(plan.teacher, plan.spec, pieces(some, size)))
    found["seconds_plain"] = times * (first + seconds(lambda: plain(model, some))) / 2
    found["added_passes"] = (found["seconds_with"] - found["seconds_without"]) / found["seconds_plain"]
    found["curvature_passes"] = found["seconds_curvature"] / found["seconds_plain"]
    return found


def measured(name: str, images: int, batch_size: int, generator: str, timed: int) -> dict[str, float]:
    """`costs` of one of timm's networks as it is initialised, on noise."""
    torch.manual_seed(0)
    model: Any = timm.create_model(name, pretrained=False).eval()
    batches = torch.randn(images, *model.pretrained_cfg["input_size"]).split(batch_size)
    return costs(model, batches, generator, max(1, timed // batch_size))


def measured_trained(assets: Path, images: int, batch_size: int, generator: str, timed: int) -> dict[str, float]:
    """`costs` of EfficientNet-Lite0 with its ImageNet weights, on photographs as they are and then on crops of them."""
    model, _ = open_teacher(assets)
    batches: list[Tensor] = []
    while len(batches) * batch_size < images:
        data = open_data(str(assets / "photos"), Preprocess.of(model), train=True, augment=bool(batches))
        full = [some for some, _ in loader(data, batch_size=batch_size) if len(some) == batch_size]
        if not full:
            raise ValueError(f"received fewer photographs than a batch; expected at least {batch_size}")
        batches += full
    *whole, last = batches[: -(-images // batch_size)]
    return costs(model, [*whole, last[: images - len(whole) * batch_size]], generator, max(1, timed // batch_size))


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS), metavar="NAME", help="timm names")
    parser.add_argument("--images", type=int, default=512, help="calibration images (default: 512)")
    parser.add_argument("--batch-size", type=int, default=32, help="images in a batch of them (default: 32)")
    parser.add_argument("--timed", type=int, metavar="N", help="time a pass on so many of them (default: all)")
    parser.add_argument("--generator", default="auto", help="as on the command line (default: auto)")
    parser.add_argument("--assets", type=Path, help="weights and photographs of EfficientNet-Lite0")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the file goes (default: benchmarks/results)")
    options = parser.parse_args(words)
    results = Results(options.out / "data_cost.csv", KEY, ())
    images, batch_size, generator = options.images, options.batch_size, options.generator
    timed = min(options.timed or images, images)
    programs: dict[str, tuple[Callable[..., dict[str, float]], str | Path]]
    programs = {name: (measured, name) for name in options.models}
    if options.assets is not None:
        programs[TRAINED] = measured_trained, options.assets
    for name, (program, what) in programs.items():
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:  # whose memory no other network has filled
            found = fresh.submit(program, what, images, batch_size, generator, timed).result()
        row = {"model": name, "images": images, "batch_size": batch_size, "generator": generator}
        results.add({**row, **found, "timed": timed})
        allowed = 3 * found["megabytes_model"] + 2000
        verdict = "within" if found["added_passes"] <= LIMIT else "ABOVE"
        say(
            f"{name}, {images} images: {found['added_passes']:.2f} passes added ({verdict} {LIMIT:g}), "
            f"the curvature of all images alone {found['curvature_passes']:.2f}; "
            f"a pass takes {found['seconds_plain']:.1f} s; "
            f"{found['megabytes']:.0f} MB ({'within' if found['megabytes'] <= allowed else 'ABOVE'} {allowed:.0f})"
        )


if __name__ == "__main__":
    main()
