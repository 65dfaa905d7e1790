"""The regression of one layer: the optimum of its rank, between the fit and the start."""

import pytest
import torch
from torch import Tensor, nn

from hypercompress.factorize import Metric, least_squares, reduced_rank, weighted_frame
from hypercompress.inspection import inspect
from hypercompress.kinds import factors_of, kind_of
from hypercompress.reconstruction import layer_regression
from hypercompress.reconstruction.layer_regression import LayerRegression
from hypercompress.sketch import sketch
from hypercompress.specs import Curvature, Side
from tests.networks import Net, images


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.mT


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("out", "d"), [(6, 9), (9, 6)])
def test_reduced_rank_regression_is_the_best_of_its_rank(out: int, d: int, groups: int) -> None:
    """No matrix of rank r has a smaller error in the metric G: against the truncated SVD of the whitened regression."""
    generator = torch.Generator().manual_seed(out)

    def normal(*shape: int) -> Tensor:
        return torch.randn(groups, *shape, generator=generator, dtype=torch.float64)

    weight, seen, gradients = normal(out, d), normal(400, d), normal(60, out)
    got = seen @ (torch.eye(d) + 0.4 * normal(d, d)) + 0.3 * normal(400, d)  # what the layers before made of it
    y, fisher = seen @ weight.mT, gradients.mT @ gradients / 60
    side = Side.OUTPUT if out <= d else Side.INPUT
    gram = weight @ weight.mT if side is Side.OUTPUT else weight.mT @ weight
    held = fisher if side is Side.OUTPUT else weight.mT @ fisher @ weight
    parts = (weight, gram, held, got.mT @ got / 400, y.mT @ got / 400)
    weight, gram, held, moment, cross = (part if groups > 1 else part[0] for part in parts)
    curvature = Curvature(side, gram, held, gram, gram.new_zeros(gram.shape[:-1]))
    factors = reduced_rank(weight, curvature, moment, cross, 3, 0.0)
    products = factors.product().reshape(groups, out, d)
    for product, g, x, wanted in zip(products, fisher, got, y, strict=True):

        def error(matrix: Tensor, g: Tensor = g, x: Tensor = x, wanted: Tensor = wanted) -> float:
            return float(((wanted - x @ matrix.T) @ root(g)).square().sum())

        free = torch.linalg.lstsq(x, wanted).solution.T
        a, b = root(g), root(x.T @ x)
        u, s, v = torch.linalg.svd(a @ free @ b, full_matrices=False)
        best = torch.linalg.solve(a, (u[:, :3] * s[:3]) @ v[:3]) @ torch.linalg.inv(b)
        assert torch.linalg.matrix_rank(product) == 3
        # The damping of the metric is all that keeps it from the optimum.
        assert error(best) * (1 - 1e-9) <= error(product) <= 1.001 * error(best)


@pytest.mark.parametrize("side", Side)
def test_inputs_that_did_not_change_give_the_directions_of_kfac(side: Side) -> None:
    generator = torch.Generator().manual_seed(3)
    x, g = (torch.randn(200, n, generator=generator, dtype=torch.float64) for n in (7, 7))
    weight = torch.randn(7, 7, generator=generator, dtype=torch.float64)
    moment, fisher = x.T @ x / 200, g.T @ g / 200
    if side is Side.OUTPUT:
        curvature = Curvature(side, weight @ moment @ weight.T, fisher, weight @ weight.T, torch.zeros(7).double())
    else:
        curvature = Curvature(side, moment, weight.T @ fisher @ weight, weight.T @ weight, torch.zeros(7).double())
    expected = weighted_frame(curvature, Metric(centred=False)).factors(weight, 3)
    got = reduced_rank(weight, curvature, moment, weight @ moment, 3, 0.01)
    torch.testing.assert_close(got.product(), expected.product(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("intercept", [True, False])
def test_ridge_goes_from_the_fit_to_the_start(intercept: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    h, y, start = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((50, 4), (50, 3), (3, 4)))
    h = h + 0.7
    shift = torch.randn(3, generator=generator, dtype=torch.float64) if intercept else None
    fits = [least_squares(h, y, start, shift, ridge, 0.0) for ridge in (0.0, 0.1, 1e9)]

    def error(fit: tuple[Tensor, Tensor]) -> float:
        return float((y - h @ fit[0].T - fit[1]).pow(2).sum())

    assert error(fits[0]) < error(fits[1]) < error(fits[2])
    torch.testing.assert_close(fits[2][0], start, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(fits[2][1], torch.zeros(3).double() if shift is None else shift, rtol=1e-6, atol=1e-6)
    # Against the normal equations with the ridge written as more rows.
    centred = h - h.mean(0) if intercept else h
    residual = y - h @ start.T - (0 if shift is None else shift)
    residual = residual - residual.mean(0) if intercept else residual
    weight = (0.1 * centred.pow(2).sum() / 4).sqrt()
    more = torch.cat([centred, weight * torch.eye(4).double()]), torch.cat([residual, torch.zeros(4, 3).double()])
    torch.testing.assert_close(fits[1][0], start + torch.linalg.lstsq(*more).solution.T)


def test_half_of_the_lost_variance_comes_back_and_the_mean_stays() -> None:
    generator = torch.Generator().manual_seed(0)
    h, noise = (torch.randn(400, 3, generator=generator, dtype=torch.float64) + 0.5 for _ in range(2))
    y, start = h + noise, torch.zeros(3, 3).double()
    (bare, _), (fitted, shift) = (least_squares(h, y, start, torch.zeros(3), 0.0, spread) for spread in (0.0, 0.5))
    after, before, got = ((t - t.mean(0)).pow(2).mean(0) for t in (h @ bare.T, y, h @ fitted.T))
    torch.testing.assert_close(got, (after * before).sqrt())
    torch.testing.assert_close((h @ fitted.T + shift).mean(0), y.mean(0))


def test_at_most_four_times_the_variance_comes_back() -> None:
    generator = torch.Generator().manual_seed(0)
    h, noise = (torch.randn(400, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    y, start = 1e-3 * h + noise, torch.zeros(3, 3).double()
    (bare, _), (fitted, _) = (least_squares(h, y, start, torch.zeros(3), 0.0, spread) for spread in (0.0, 1.0))
    torch.testing.assert_close(fitted, 2 * bare)


def test_nothing_comes_in_and_the_start_stays() -> None:
    start = torch.ones(2, 3)
    expand, shift = least_squares(torch.zeros(5, 3), torch.ones(5, 2), start, torch.zeros(2), 0.0, 0.0)
    torch.testing.assert_close(expand, start.double())
    torch.testing.assert_close(shift, torch.ones(2).double())


@pytest.mark.parametrize("pieces", [1, 40])
@pytest.mark.parametrize("centred", [True, False], ids=["an intercept", "none"])
def test_moments_are_about_the_mean_where_an_intercept_is_free(
    centred: bool, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the rows are read at once or in pieces, and far from zero."""
    monkeypatch.setattr(layer_regression, "CHUNK", 40 * (6 + 4) // pieces)
    dense = nn.Linear(6, 4)
    model, x = Net(dense, nn.Tanh(), nn.Linear(4, 3)), images(40, 6) + torch.arange(40)[:, None] / 10
    spec = inspect(model, x)
    regression = LayerRegression(spec.candidates[0], dense, sketch(model, spec, [x])["0"], 1e-2, centred=centred)
    y = dense(x).detach() + 3
    moment, cross = regression._moments(dense, x, y)
    a, b = (x - x.mean(0), y - y.mean(0)) if centred else (x, y)
    torch.testing.assert_close(moment, a.T @ a / 40)
    torch.testing.assert_close(cross, b.T @ a / 40)


def test_behind_a_projection_a_heavy_ridge_keeps_the_kernel_that_reads_through_it() -> None:
    """``W P^+``: of all kernels on the projected channels the nearest to W, whatever the scales of P's rows."""
    dense = nn.Conv2d(5, 4, 3)
    model, x = Net(dense, nn.Flatten(), nn.Linear(4 * 9, 3)), images(12, 5, 5, 5)
    spec = inspect(model, x)
    kind = kind_of(dense)
    assert kind is not None
    twin = kind.low_rank(dense, 4, 3)
    regression = LayerRegression(spec.candidates[0], dense, sketch(model, spec, [x])["0"], 1e9, centred=True)
    with torch.no_grad():
        assert regression(twin, x, dense(x))
    found = factors_of(twin)
    assert found.project is not None
    across = torch.linalg.inv(found.project @ found.project.T)
    wanted = torch.einsum("ocij,pc,pq->oqij", dense.weight.detach(), found.project, across)
    torch.testing.assert_close(found.expand @ found.reduce, wanted.flatten(1))
