"""What a randomized decomposition would save and cost, beside the exact one that generators use.

    python -m benchmarks.decomposition [--models resnet50 ...] [--checkpoint FILE] [--out benchmarks/results]

For every layer that may be factored: `factorize.plain_frame` (eigenvectors of the Gram matrix on the smaller side, in
float64, all directions) against `torch.svd_lowrank` (Halko et al. 2011, algorithm 4.4, in float32, two power
iterations, ten directions more than asked), at a share of the rank at which a factored layer is as large as the dense
one. Error: how much farther the randomized approximation is from the weights than the best of its rank (Frobenius
norm; 0 is exact). A generator needs all directions' energies to choose ranks with; the randomized one gives those that
it found. With ``--checkpoint`` the first model has these weights, else all are as initialised, whose flat spectra are
the hard case for the error. Writes ``decomposition.csv``. One CPU core, about five minutes.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from benchmarks.shared.common import RESULTS, Results, say
from hypercompress.architecture import load_timm
from hypercompress.factorize import plain_frame
from hypercompress.preparation import prepare
from hypercompress.specs import Side

MODELS = ("resnet50", "vit_base_patch16_224")
SHARES = (0.1, 0.25, 0.5, 0.75)
OVERSAMPLING, POWER = 10, 2

Result = TypeVar("Result")


def timed(run: Callable[[], Result]) -> tuple[float, Result]:
    """Seconds, and what came out."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def truncated(weight: Tensor, side: Side) -> Callable[[int], Tensor]:
    """The best approximation of each rank, from the exact decomposition."""
    frame = plain_frame(weight, side)

    def best(rank: int) -> Tensor:
        left, right = frame.kept(rank)
        return left @ (right @ weight.double()) if side is Side.OUTPUT else (weight.double() @ left) @ right

    return best


def randomized(weight: Tensor, rank: int) -> Tensor:
    """An approximation of a rank from random directions."""
    q = min(rank + OVERSAMPLING, *weight.shape)
    u, s, v = torch.svd_lowrank(weight, q=q, niter=POWER)
    return (u[:, :rank] * s[:rank]) @ v[:, :rank].mT


def compare(weights: Sequence[tuple[Tensor, Side]], share: float) -> dict[str, float]:
    """Time of both decompositions over all layers, and the excess error of the randomized one."""
    exact = fast = 0.0
    excess = []
    for weight, side in weights:
        out, d = weight.shape
        rank = max(1, int(share * out * d / (out + d)))
        seconds, best = timed(lambda weight=weight, side=side: truncated(weight, side))  # type: ignore[misc]
        exact += seconds
        seconds, ours = timed(lambda weight=weight, rank=rank: randomized(weight, rank))  # type: ignore[misc]
        fast += seconds
        least = float((weight.double() - best(rank)).norm())
        excess.append(float((weight.double() - ours.double()).norm()) / max(least, 1e-30) - 1)
    return {
        "seconds_exact": exact,
        "seconds_randomized": fast,
        "excess_error_mean": sum(excess) / len(excess),
        "excess_error_max": max(excess),
    }


def matrices(model: nn.Module) -> tuple[list[tuple[Tensor, Side]], int]:
    """The weights of the layers that may be factored and are one matrix each, and how many are groups of matrices."""
    plan = prepare(model, None, "svd")
    found = [(plan.sketches[layer.name].weight.detach(), layer.side) for layer in plan.spec.candidates]
    single = [(weight, side) for weight, side in found if weight.ndim == 2]
    return single, len(found) - len(single)


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME", help="timm names")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights of the first model")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the file goes (default: benchmarks/results)")
    options = parser.parse_args(words)
    results = Results(options.out / "decomposition.csv", ("model", "trained", "share"), ())
    for place, name in enumerate(options.models):
        torch.manual_seed(0)
        trained = place == 0 and options.checkpoint is not None
        model, _ = load_timm(name, checkpoint=options.checkpoint if trained else None, pretrained=False)
        weights, grouped = matrices(model)
        for share in SHARES:
            found = compare(weights, share)
            results.add({"model": name, "trained": trained, "share": share, "layers": len(weights), **found})
            say(
                f"{name}, {share:g} of the break-even rank, {len(weights)} layers ({grouped} grouped ones left out): "
                f"exact {found['seconds_exact']:.1f} s, randomized {found['seconds_randomized']:.1f} s, error "
                f"{found['excess_error_mean']:.1%} above the best (at most {found['excess_error_max']:.1%})"
            )


if __name__ == "__main__":
    main()
