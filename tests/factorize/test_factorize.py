"""Low-rank layers and their directions: full rank is the dense layer, errors are the discarded energies."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor

from hypercompress.factorize import Metric, add_outer, balanced, frame_of, lost_output, plain_frame, weighted_frame
from hypercompress.factorize.linalg import damped, roots
from hypercompress.specs import Curvature, LayerFactors, Side

SHAPES = [(5, 9), (9, 5), (6, 6), (1, 4), (4, 1)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def covariance(size: int, seed: int) -> Tensor:
    """A second moment of correlated samples with a mean, well conditioned."""
    samples = random(8 * size, size, seed=seed) @ random(size, size, seed=seed + 1) + random(size, seed=seed + 2)
    return samples.T @ samples / len(samples) + 0.1 * torch.eye(size, dtype=torch.float64)


def side_of(weight: Tensor) -> Side:
    return Side.OUTPUT if weight.shape[0] <= weight.shape[1] else Side.INPUT


def curvature_from(weight: Tensor, S: Tensor, G: Tensor, mean: Tensor) -> Curvature:
    """What `curvature.measure` would keep of explicit S [d, d], G [out, out] and E[x] [d]."""
    if side_of(weight) is Side.OUTPUT:
        return Curvature(Side.OUTPUT, weight @ S @ weight.T, G, weight @ weight.T, weight @ mean)
    return Curvature(Side.INPUT, S, weight.T @ G @ weight, weight.T @ weight, mean)


def root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T


def cost(error: Tensor, S: Tensor, G: Tensor) -> float:
    """``|| G^(1/2) error S^(1/2) ||_F^2``."""
    return float((root(G) @ error @ root(S)).square().sum())


def product(factors: LayerFactors) -> Tensor:
    return factors.expand @ factors.reduce


@pytest.mark.parametrize("shape", SHAPES)
def test_plain_directions_are_those_of_the_svd(shape: tuple[int, int]) -> None:
    weight = random(*shape)
    frame = plain_frame(weight, side_of(weight))
    U, s, Vh = torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close(frame.energy, s**2)
    for rank in range(1, len(s) + 1):
        expected = (U[:, :rank] * s[:rank]) @ Vh[:rank]
        torch.testing.assert_close(product(frame.factors(weight, rank)), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(("signal", "fisher"), [(True, True), (True, False), (False, True)])
def test_error_in_the_metric_is_the_discarded_energy(
    shape: tuple[int, int], centred: bool, signal: bool, fisher: bool
) -> None:
    weight, S, G, mean = random(*shape), covariance(shape[1], 3), covariance(shape[0], 7), 0.1 * random(shape[1])
    frame = weighted_frame(curvature_from(weight, S, G, mean), Metric(signal, fisher, centred, damping=1e-12))
    S = S - torch.outer(mean, mean) if centred else S
    S = S if signal else torch.eye(shape[1], dtype=S.dtype)
    G = G if fisher else torch.eye(shape[0], dtype=G.dtype)
    assert (frame.energy.diff() <= 0).all()
    assert float(frame.energy.sum()) == pytest.approx(cost(weight, S, G), rel=1e-8)
    for rank in range(1, min(shape) + 1):
        got = cost(weight - product(frame.factors(weight, rank)), S, G)
        assert got == pytest.approx(float(frame.energy[rank:].sum()), rel=1e-8, abs=1e-9)


@settings(max_examples=40)
@given(st.integers(2, 7), st.integers(2, 7), st.integers(0, 10_000), st.data())
def test_no_other_matrix_of_the_rank_is_better(outside: int, inside: int, seed: int, data: st.DataObject) -> None:
    weight, S, G = random(outside, inside, seed=seed), covariance(inside, seed + 3), covariance(outside, seed + 9)
    rank = data.draw(st.integers(1, min(outside, inside) - 1))
    curvature = curvature_from(weight, S, G, torch.zeros(inside, dtype=S.dtype))
    best = product(weighted_frame(curvature, Metric(damping=1e-12)).factors(weight, rank))
    least = cost(weight - best, S, G)
    U, s, Vh = torch.linalg.svd(weight, full_matrices=False)
    others = [(U[:, :rank] * s[:rank]) @ Vh[:rank]]
    for trial in range(4):
        basis = random(inside, rank, seed=seed + 20 + trial)
        # The best matrix with a given row space, so a strong opponent; and a small step away from ours.
        coefficients = weight @ S @ basis @ torch.linalg.inv(basis.T @ S @ basis)
        others.append(coefficients @ basis.T)
        a, b = random(outside, rank, seed=seed + 30 + trial), random(rank, inside, seed=seed + 40 + trial)
        U, s, Vh = torch.linalg.svd(best, full_matrices=False)
        others.append((U[:, :rank] * s[:rank] + 1e-3 * a) @ (Vh[:rank] + 1e-3 * b))
    assert all(least <= cost(weight - other, S, G) * (1 + 1e-9) for other in others)


METRICS = (Metric(fisher=False), Metric(), Metric(centred=False), Metric(signal=False))


@settings(max_examples=500)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10_000), st.sampled_from(METRICS), st.integers(0, 3))
def test_full_rank_in_any_metric_is_the_dense_matrix(
    outside: int, inside: int, seed: int, metric: Metric, dead: int
) -> None:
    """To 1e-10 of the largest weight, also where inputs or gradients have directions that never occur."""
    weight, mean = random(outside, inside, seed=seed), random(inside, seed=seed + 1)
    seen, wanted = (
        random(inside, max(1, inside - dead), seed=seed + 2),
        random(outside, max(1, outside - dead), seed=seed + 3),
    )
    S, G = seen @ seen.T + mean.outer(mean), wanted @ wanted.T
    frame = weighted_frame(curvature_from(weight, S, G, mean), metric)
    found = product(frame.factors(weight, min(outside, inside)))
    torch.testing.assert_close(found, weight, rtol=0, atol=1e-10 * float(weight.abs().max()))


@pytest.mark.parametrize("shape", SHAPES)
def test_mean_that_truncation_takes_is_what_the_dense_layer_adds(shape: tuple[int, int]) -> None:
    weight, S, G, mean = random(*shape), covariance(shape[1], 3), covariance(shape[0], 7), random(shape[1])
    curvature = curvature_from(weight, S, G, mean)
    frame = weighted_frame(curvature, Metric())
    lost = lost_output(frame.side, weight, *frame.kept(1), curvature.mean)
    torch.testing.assert_close(lost, (weight - product(frame.factors(weight, 1))) @ mean, rtol=0, atol=1e-10)


@given(st.integers(1, 6), st.integers(0, 1000), st.sampled_from([torch.float32, torch.float64]))
def test_balanced_factors_have_equal_norms_and_the_same_product(rank: int, seed: int, dtype: torch.dtype) -> None:
    expand, reduce = (1e3 * random(7, rank, seed=seed)).to(dtype), random(rank, 5, seed=seed + 1).to(dtype)
    pair = balanced(expand, reduce)
    torch.testing.assert_close(pair.expand.norm(dim=0), pair.reduce.norm(dim=1))
    assert pair.rank == rank
    torch.testing.assert_close(product(pair), expand @ reduce, rtol=1e-4, atol=1e-2 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("zero", ["expand", "reduce", "both"])
def test_balancing_a_direction_of_zero_leaves_it_finite_and_able_to_learn(zero: str) -> None:
    expand, reduce = torch.ones(4, 2), 1e3 * torch.ones(2, 3)
    if zero != "reduce":
        expand[:, 1] = 0
    if zero != "expand":
        reduce[1] = 0
    pair = balanced(expand, reduce)
    assert torch.equal(pair.expand[:, 1], expand[:, 1])
    assert torch.equal(pair.reduce[1], reduce[1])
    torch.testing.assert_close(product(pair), expand @ reduce)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("zero", ["weight", "S", "G"])
def test_degenerate_layers_give_finite_factors(shape: tuple[int, int], zero: str) -> None:
    weight, S, G = random(*shape), covariance(shape[1], 3), covariance(shape[0], 7)
    weight, S, G = (t * (name != zero) for name, t in (("weight", weight), ("S", S), ("G", G)))
    curvature = curvature_from(weight, S, G, torch.zeros(shape[1], dtype=S.dtype))
    frame = weighted_frame(curvature, Metric())
    assert float(frame.energy.sum()) == 0
    factors = frame.factors(weight.float(), 1)
    assert factors.expand.isfinite().all()
    assert factors.reduce.isfinite().all()
    assert torch.linalg.matrix_rank(frame.left) == min(shape)


@given(st.integers(1, 6), st.integers(0, 1000))
def test_roots_are_roots_and_inverse_to_each_other(size: int, seed: int) -> None:
    matrix = covariance(size, seed)
    half, inverse = roots(matrix)
    torch.testing.assert_close(half @ half.T, matrix)
    torch.testing.assert_close(half @ inverse, torch.eye(size, dtype=matrix.dtype), rtol=0, atol=1e-7)


def test_damping_adds_its_share_of_the_trace() -> None:
    matrix, reference = covariance(4, 0), covariance(4, 9)
    added = damped(matrix, reference, 0.25) - matrix
    assert float(added.trace()) == pytest.approx(0.25 * float(matrix.trace()))
    torch.testing.assert_close(added / reference, torch.full_like(matrix, float(added[0, 0] / reference[0, 0])))
    assert torch.equal(damped(matrix, torch.zeros_like(matrix), 0.25), matrix)


@pytest.mark.parametrize("values", [(4.0, 0.25, 1.0), (1.0, 0.0, 1e-30)])
def test_roots_of_a_diagonal_are_those_of_the_eigenvalues(values: tuple[float, ...]) -> None:
    matrix = torch.diag(torch.tensor(values, dtype=torch.float64))
    turn, _ = torch.linalg.qr(random(3, 3))
    raised = torch.tensor(values, dtype=torch.float64).clamp_min(1e-12 * max(values)).diag()
    for axes in (torch.eye(3, dtype=torch.float64), turn):
        root, inverse = roots(axes @ matrix @ axes.T)
        torch.testing.assert_close(root @ root.T, axes @ raised @ axes.T, rtol=0, atol=1e-12)
        torch.testing.assert_close(root @ inverse, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("side", list(Side))
def test_directions_do_not_depend_on_the_root(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cholesky's factor, and the symmetric root that it stands in for."""

    def symmetric(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, vectors = torch.linalg.eigh(matrix)
        return (vectors * values.sqrt()) @ vectors.T, (vectors / values.sqrt()) @ vectors.T

    metric, moment = covariance(6, 1), covariance(6, 2)
    ours = frame_of(side, metric, moment)
    monkeypatch.setattr("hypercompress.factorize.linalg.roots", symmetric)
    theirs = frame_of(side, metric, moment)
    torch.testing.assert_close(ours.energy, theirs.energy)
    for rank in range(1, 7):
        (one, other), (two, another) = ours.kept(rank), theirs.kept(rank)
        torch.testing.assert_close(one @ other, two @ another)


def test_stored_directions_give_the_same_factors() -> None:
    weight, exact = random(5, 9), plain_frame(random(5, 9), Side.OUTPUT)
    single = exact.stored(torch.float32)
    assert (single.left.dtype, single.right.dtype, single.energy.dtype) == (torch.float32, torch.float32, torch.float64)
    assert exact.stored(torch.float64).left is exact.left
    assert exact.stored(torch.bfloat16).left.dtype is torch.float32
    for rank in (1, 3, 5):
        ours, theirs = (frame.factors(weight.float(), rank) for frame in (single, exact))
        assert torch.equal(ours.expand, theirs.expand)
        assert torch.equal(ours.reduce, theirs.reduce)


@settings(max_examples=30)
@given(st.integers(1, 6), st.integers(0, 1000), st.floats(1e-6, 1e6))
def test_scale_of_the_metric_changes_energies_alone(size: int, seed: int, scale: float) -> None:
    metric, moment = covariance(size, seed), covariance(size, seed + 5)
    assume(size == 1 or float(torch.linalg.eigvalsh(metric @ moment).diff().abs().min()) > 1e-6)
    a, b = frame_of(Side.OUTPUT, metric, moment), frame_of(Side.OUTPUT, scale * metric, moment)
    torch.testing.assert_close(b.energy, scale * a.energy, rtol=1e-6, atol=0)
    for rank in range(1, size + 1):
        ours, theirs = (f.left[:, :rank] @ f.right[:rank] for f in (a, b))
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [(), (3,)])
def test_outer_products_are_added_in_place_to_a_part_of_a_matrix(groups: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(*groups, 7, 6, generator=generator, dtype=torch.float64)
    left, right = (torch.randn(*groups, n, generator=generator, dtype=torch.float64) for n in (4, 5))
    wanted = whole.clone()
    wanted[..., 1:5, :5] -= 2 * left[..., :, None] * right[..., None, :]
    add_outer(whole[..., 1:5, :5], left, right, -2.0)
    torch.testing.assert_close(whole, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_factors_of_half_precision_weights_are_rounded_once(dtype: torch.dtype) -> None:
    """Multiplied in half precision their errors add up over all inputs."""
    weight = random(48, 96).to(dtype)
    S, G = covariance(96, 1), covariance(48, 4)
    curvature = curvature_from(weight.double(), S, G, random(96, seed=7))
    frame = weighted_frame(curvature, Metric())
    got, exact = frame.factors(weight, 12), frame.factors(weight.double(), 12)
    torch.testing.assert_close(got.product().double(), exact.product(), rtol=0, atol=1e-5)


def test_roots_of_a_nearly_singular_matrix_are_raised_though_cholesky_goes_through() -> None:
    matrix = torch.tensor([[1, 1], [1, 1 + 1e-14]], dtype=torch.float64)
    assert not torch.linalg.cholesky_ex(matrix).info
    root, inverse = roots(matrix)
    torch.testing.assert_close(root @ root.T, matrix)
    torch.testing.assert_close(inverse.square().sum(), torch.tensor(1 / 2e-12).double(), rtol=1e-3, atol=0)
