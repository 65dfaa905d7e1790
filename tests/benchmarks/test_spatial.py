"""What a spatial form of a convolution would gain."""

import csv
from importlib.resources import files
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import spatial
from benchmarks.spatial import least_loss, spatial_energies
from hypercompress.specs import Curvature, Side

PACKAGED = files("hypercompress") / "pretrained" / "fashion_mnist_teacher"


def curvature(out: int, channels: int) -> Curvature:
    """Of random inputs with a mean and random gradients."""
    x = torch.randn(channels, 4 * channels, dtype=torch.double) + torch.randn(channels, 1, dtype=torch.double)
    g = torch.randn(out, 4 * out, dtype=torch.double)
    inner = Curvature(Side.INPUT, x @ x.T / x.shape[1], torch.eye(channels), torch.eye(channels), x.mean(1))
    return Curvature(Side.OUTPUT, torch.eye(out), g @ g.T, torch.eye(out), torch.zeros(out), inner)


@pytest.mark.parametrize("centred", [False, True])
def test_energies_are_those_of_the_kernel_seen_through_both_halves(centred: bool) -> None:
    torch.manual_seed(0)
    seen, weight = curvature(6, 5), torch.randn(6, 5, 3, 3, dtype=torch.double)
    assert seen.inputs is not None
    signal = seen.inputs.signal - centred * seen.inputs.mean.outer(seen.inputs.mean)
    whole = sum(
        torch.trace(seen.fisher @ weight[..., i, j] @ signal @ weight[..., i, j].T) for i, j in product(*2 * [range(3)])
    )
    energies = spatial_energies(weight.flatten(1), seen, (3, 3), centred=centred)
    torch.testing.assert_close(energies.sum(), torch.as_tensor(whole))


def test_a_kernel_of_two_convolutions_has_their_rank() -> None:
    torch.manual_seed(0)
    first, second = torch.randn(4, 5, 3, dtype=torch.double), torch.randn(6, 4, 3, dtype=torch.double)
    weight = torch.einsum("rch,orw->ochw", first, second)
    energies = spatial_energies(weight.flatten(1), curvature(6, 5), (3, 3), centred=True)
    assert energies[3] > 1e-3
    assert energies[4] < 1e-9


def test_the_least_loss_is_that_of_the_best_mixture() -> None:
    """Beside all mixtures of two hulls on a grid."""
    layers = [np.array([(1, 5.0), (2, 3.0), (4, 1.0), (8, 0.0)]), np.array([(2, 4.0), (3, 1.0), (6, 0.0)])]

    def loss(corners: spatial.Points, cost: float) -> float:
        return float(np.interp(cost, corners[:, 0], corners[:, 1]))

    for room in (3.0, 4.5, 9.0, 14.0):
        splits = np.arange(1, min(8.0, room - 2) + 1e-9, 0.25)
        best = min(loss(layers[0], cost) + loss(layers[1], min(room - cost, 6)) for cost in splits)
        assert least_loss(layers, room) == pytest.approx(best)
    assert least_loss(layers, 2.9) is None


def test_more_forms_never_lose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a small trained network."""
    monkeypatch.setattr(spatial, "IMAGES", 128)
    spatial.main(["--data", "fashion_mnist_mini", "--teacher", str(PACKAGED), "--out", str(tmp_path)])
    with (tmp_path / "spatial.csv").open() as file:
        rows = {(row["unit"], row["share"], row["forms"]): row["predicted_kl"] for row in csv.DictReader(file)}
    assert len(rows) == 2 * len(spatial.SHARES) * len(spatial.FORMS)
    found = 0
    for unit, share in {(unit, share) for unit, share, _ in rows}:
        one, third, both, all_ = (rows[unit, share, forms] for forms in spatial.FORMS)
        if one:
            found += 1
            assert float(third) <= float(one)
            assert float(all_) <= float(both) <= float(one)
    assert found
