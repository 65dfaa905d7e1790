"""Curvature, directions and error of a grouped convolution: each group's are those of a layer of its own."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hypercompress.curvature import measure
from hypercompress.curvature.fisher import fisher_probe
from hypercompress.factorize import Frame, Metric, weighted_frame
from hypercompress.generator.emission import rotated
from hypercompress.generator.prior import prior_curvature
from hypercompress.inspection import inspect
from hypercompress.kinds import by_group, kind_of
from hypercompress.sketch import sketch
from hypercompress.specs import (
    Curvature,
    NormStatistics,
    Sketch,
)
from tests.groups import CASES, Network, apart, conv_of, images, network


def part(curvature: Curvature, group: int) -> Curvature:
    fields = {name: getattr(curvature, name)[group] for name in ("signal", "fisher", "gram", "mean")}
    return Curvature(curvature.side, **fields)


def same_curvature(one: Curvature, other: Curvature) -> None:
    assert one.side is other.side
    for name in ("signal", "fisher", "gram", "mean"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-8, atol=1e-12)


@CASES
def test_curvature_of_a_group_is_that_of_a_layer_of_its_own(side: str, kernel: int) -> None:
    model, x = network(side, kernel), images()
    found = measure(model, inspect(model, x[:2]), x.split(8))
    theirs = measure(apart(model), inspect(apart(model), x[:2]), x.split(8))
    for group in range(4):
        same_curvature(part(found["conv"], group), theirs[f"conv.{group}"])


@CASES
def test_guessed_curvature_of_a_group_is_that_of_a_layer_of_its_own(side: str, kernel: int) -> None:
    model = network(side, kernel)
    spec = inspect(model, images(2))
    layer, known = conv_of(spec), sketch(model, spec, None)["conv"]
    assert (layer.follower, layer.feeder) == ("norm", "stem_norm")
    guess = prior_curvature(layer, known)

    def of_group(norm: NormStatistics | None, group: int) -> NormStatistics:
        assert norm is not None
        parts = (t.chunk(4)[group] for t in (norm.weight, norm.bias, norm.mean, norm.variance))
        return NormStatistics(*parts, norm.eps, norm.moments)

    shares = []
    for group in range(4):
        alone = replace(layer, out=layer.rows, groups=1, input_positions=0)
        norms = of_group(known.follower, group), of_group(known.feeder, group)
        single = prior_curvature(alone, Sketch(known.weight[group], None, None, *norms))
        ours = part(guess, group)
        # G is relative to the power of the whole layer's output: a group's own scale is its share of it.
        shares.append(float(ours.fisher.diagonal().sum() / single.fisher.diagonal().sum()))
        same_curvature(replace(ours, fisher=ours.fisher / shares[-1]), single)
    assert sum(shares) == pytest.approx(1.0)


def projections(frame: Frame, rank: int) -> Tensor:
    left, right = frame.kept(rank)
    return left @ right


@CASES
@pytest.mark.parametrize("dead", [False, True])
def test_directions_of_a_group_are_those_of_its_own_matrix(side: str, kernel: int, dead: bool) -> None:
    model, x = network(side, kernel), images()
    curvature = measure(model, inspect(model, x[:2]), [x])["conv"]
    if dead:  # nothing that the second group says is heard
        curvature.fisher[1] = 0
    frame = weighted_frame(curvature, Metric())
    singles = [weighted_frame(part(curvature, group), Metric()) for group in range(4)]
    torch.testing.assert_close(frame.energy, torch.stack([single.energy for single in singles]))
    torch.testing.assert_close(frame.total, frame.energy.sum(0))
    assert (frame.total.diff() <= 0).all()
    for group, single in enumerate(singles):
        if dead and group == 1:
            assert not single.energy.any()
            continue
        for rank in (1, 2):
            torch.testing.assert_close(projections(frame, rank)[group], projections(single, rank), rtol=1e-6, atol=1e-8)
            turned = [
                left @ right
                for left, right in (
                    rotated(frame, curvature.gram, rank, torch.tensor(0.3), None),
                    rotated(single, curvature.gram[group], rank, torch.tensor(0.3), None),
                )
            ]
            torch.testing.assert_close(turned[0][group], turned[1], rtol=1e-5, atol=1e-7)


@CASES
def test_error_in_the_metric_is_the_discarded_energy_of_all_groups(side: str, kernel: int) -> None:
    model, x = network(side, kernel), images()
    spec = inspect(model, x[:2])
    item = sketch(model, spec, [x])["conv"]
    assert item.curvature is not None
    frame = weighted_frame(item.curvature, Metric(damping=1e-12))
    conv, seen = model.conv, model.stem_norm(model.stem(x)).relu()
    kind = kind_of(conv)
    assert kind is not None
    rows = kind.input_rows(conv, seen).detach()
    rows = rows - rows.mean(1, keepdim=True)
    S, G = rows.mT @ rows / rows.shape[1], output_fisher(model, x)
    for rank in (1, 2):
        error = item.weight - frame.factors(item.weight, rank).product()
        lost = torch.einsum("gij,gjd,gde,gie->", G, error, S, error)
        assert float(lost) == pytest.approx(float(frame.total[rank:].sum()), rel=1e-5, abs=1e-12)


def output_fisher(model: Network, x: Tensor) -> Tensor:
    """G of each group of the grouped convolution, as `measure` draws it for one batch."""
    seen: list[Tensor] = []
    handle = model.conv.register_forward_hook(lambda _m, _i, output: seen.append(output))
    scalar = fisher_probe(model(x), torch.Generator().manual_seed(0))
    handle.remove()
    (gradient,) = torch.autograd.grad(scalar, seen)
    rows = by_group(gradient.movedim(1, -1).flatten(0, -2), 4)
    return rows.mT @ rows / len(x)
