"""What a third form of a convolution would gain: spatial (k x 1, then 1 x k), beside channels alone and Tucker-2.

    python -m benchmarks.spatial --data fashion_mnist:ROOT --teacher FOLDER [FOLDER ...] [--out DIR]

Predicted KL of `kfac`'s metric at equal cost of the whole network; no student is built. A kernel is unfolded to
``[input channel and row, column and output]``, seen through S of the channels (the same for every tap) and G, whose
r leading directions are a k x 1 convolution to r channels and a 1 x k one behind it (Jaderberg et al., 2014,
arXiv:1405.3866, scheme 2). Every layer has the lower hull of its forms, and all layers share one price, so that the
numbers are those of the continuous optimum. Writes ``spatial.csv``. One CPU core, a minute for each teacher.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.shared.common import RESULTS, Results, digest, markdown, read_set, say
from hypercompress.generator import ANALYTIC
from hypercompress.menus import Form, Point, hulls, lower_hull, tail
from hypercompress.models import load_model
from hypercompress.preparation import Plan, prepare
from hypercompress.specs import Curvature, LayerSpec, Unit

KEY = ("teacher", "unit", "share", "forms")
SHARES = (0.3, 0.15, 0.06, 0.03)
FORMS = ("one side", "one side, spatial", "one or both", "one or both, spatial")
IMAGES = 1024
KFAC = ANALYTIC["kfac"]
Points = NDArray[np.float64]  # [n, 2]: cost and nats lost


def root(matrix: Tensor) -> Tensor:
    """Symmetric root of a positive semidefinite matrix ``[m, m]``."""
    values, vectors = torch.linalg.eigh(matrix.double())
    found: Tensor = (vectors * values.clamp_min(0).sqrt()) @ vectors.mT
    return found


def spatial_energies(weight: Tensor, curvature: Curvature, kernel: tuple[int, int], *, centred: bool) -> Tensor:
    """Energies of the directions of the spatial unfolding, largest first.

    Args:
        weight: ``[out, channels x taps]``, taps innermost.
        curvature: of a layer that `LayerSpec.projects`.
        kernel: height and width.
        centred: whether the mean is taken out of S.
    """
    assert curvature.inputs is not None
    signal, mean = curvature.inputs.signal.double(), curvature.inputs.mean.double()
    inward, outward = root(signal - centred * mean.outer(mean)), root(curvature.fisher)
    height, width = kernel
    taps = weight.double().reshape(len(weight), -1, height, width)
    seen = torch.einsum("po,ochw,cq->qhwp", outward, taps, inward)
    values: Tensor = torch.linalg.svdvals(seen.flatten(2).flatten(0, 1))
    return values.square()


def spatial_cost(layer: LayerSpec, unit: Unit, kernel: tuple[int, int]) -> float:
    """Of one rank: the k x 1 convolution keeps the width of the input, where there is a stride."""
    first, second = layer.channels * kernel[0], layer.out * kernel[1]
    if unit is Unit.PARAMS:
        return first + second
    return first * math.sqrt(layer.input_positions * layer.positions) + second * layer.positions


def with_spatial(menu: Sequence[Point], plan: Plan, layer: LayerSpec, unit: Unit) -> list[Point]:
    """A layer's hull with spatial forms on it, if it can have them; the ranks of a spatial one stand for its form."""
    sketch = plan.sketches[layer.name]
    if not layer.projects or sketch.curvature is None:
        return list(menu)
    height, width = plan.teacher.get_parameter(f"{layer.name}.weight").shape[-2:]
    centred = KFAC.metric_for(layer, sketch).centred
    lost = tail(spatial_energies(sketch.weight, sketch.curvature, (height, width), centred=centred))
    step = spatial_cost(layer, unit, (height, width))
    spatial = [(Form(rank), round(rank * step), float(lost[rank])) for rank in range(1, len(lost))]
    front: list[Point] = []
    for point in sorted([*menu, *spatial], key=lambda point: point[1:]):
        if point[1] <= layer.dense_cost(unit) and (not front or point[2] < front[-1][2]):
            front.append(point)
    return lower_hull(front)


def menus(plan: Plan, unit: Unit) -> dict[str, list[Points]]:
    """Costs and nats at the corners of every candidate's hull, by the forms it may take."""
    known = KFAC.directions(plan.spec, plan.sketches)
    outputs, inputs = KFAC.energies(known.outputs), KFAC.energies(known.inputs)
    found: dict[str, list[Points]] = {}
    for forms, inner in (("one side", {}), ("one or both", inputs)):
        hull = hulls(plan.spec, outputs, unit, inner)
        spatial = [with_spatial(hull[layer.name], plan, layer, unit) for layer in plan.spec.candidates]
        for name, layers in ((forms, [*hull.values()]), (f"{forms}, spatial", spatial)):
            found[name] = [np.array([(cost, loss / 2) for _, cost, loss in corners]) for corners in layers]
    return found


def least_loss(layers: Sequence[Points], room: float) -> float | None:
    """Nats lost at a cost of all layers together, a hull's edges included; ``None`` if there is no room for it."""
    room -= sum(float(corners[0, 0]) for corners in layers)
    if room < 0:
        return None
    edges = np.concatenate([np.diff(corners, axis=0) for corners in layers])
    edges = edges[np.argsort(edges[:, 1] / edges[:, 0])]  # the steepest fall first
    taken = np.clip((room - (np.cumsum(edges[:, 0]) - edges[:, 0])) / edges[:, 0], 0.0, 1.0)
    return float(sum(corners[0, 1] for corners in layers) + (taken * edges[:, 1]).sum())


def run(name: str, plan: Plan, weights: str, results: Results) -> None:
    """All rows of a teacher."""
    for unit in (Unit.PARAMS, Unit.MACS):
        total = plan.spec.total(unit)
        fixed = total - sum(layer.dense_cost(unit) for layer in plan.spec.candidates)
        for forms, layers in menus(plan, unit).items():
            for share in SHARES:
                row = {"teacher": name, "unit": str(unit), "share": share, "forms": forms, "weights": weights}
                results.add({**row, "predicted_kl": least_loss(layers, share * total - fixed)})


def table(results: Results) -> str:
    """What the third form takes away, beside one side alone and beside the menu."""
    lines = []
    for row in results.rows:
        if row["forms"] == FORMS[0]:
            chosen = [results.numbers("predicted_kl", **{**{k: row[k] for k in KEY}, "forms": f}) for f in FORMS]
            one, one_third, both, both_third = (float(found[0]) if found else math.nan for found in chosen)
            gains = (gain(one, one_third), gain(one, both), gain(both, both_third))
            lines.append([row["teacher"], f"{float(row['share']):.0%} of the {row['unit']}", f"{one:.3g}", *gains])
    header = ("spatial beside it", "Tucker-2 beside it", "spatial beside both")
    return markdown(("teacher", "budget", "nats, one side", *header), lines)


def gain(before: float, after: float) -> str:
    """By how much the nats fall; a dash where there is nothing before."""
    return "-" if math.isnan(before) else f"{1 - after / before:.1%}"


def main(words: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, metavar="DATA", help="fashion_mnist:ROOT, as on the command line")
    parser.add_argument("--teacher", type=Path, nargs="+", required=True, metavar="FOLDER", help="trained networks")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the file goes (default: benchmarks/results)")
    options = parser.parse_args(words)
    results = Results(options.out / "spatial.csv", KEY)
    for folder in options.teacher:
        teacher, _ = load_model(str(folder))
        train = read_set(teacher, options.data, train=True)
        chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[:IMAGES]
        run(folder.name, prepare(teacher, train.images[chosen].split(64), "kfac"), digest(folder), results)
    say(table(results))


if __name__ == "__main__":
    main()
