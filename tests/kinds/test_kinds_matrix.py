"""A layer of any kind as a matrix: its rows give the output, and the dense form is the product rounded once."""

from fractions import Fraction

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from hypercompress.kinds import ConvKind, factors_of, kind_of, low_rank_like
from hypercompress.specs import LayerFactors
from tests.drawn import KINDS, convolutions, matrix, timm_convolutions, transposed
from tests.strategies import grouped

layers = st.one_of(*KINDS.values())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@settings(max_examples=100)
@given(st.one_of(layers, grouped()), st.booleans())
def test_the_dense_form_is_the_product_rounded_once(
    dtype: torch.dtype, case: tuple[nn.Module, Tensor], both: bool
) -> None:
    """The bound of `LowRank.filled`, against the product in exact arithmetic."""
    dense = case[0]
    kind = kind_of(dense)
    assert kind is not None
    both = both and isinstance(kind, ConvKind) and kind.taps(dense) > 1 and not getattr(dense, "transposed", False)
    both = both and kind.groups(dense) == 1
    layer = low_rank_like(dense, 3, 2 if both else None).to(dtype)
    found, factors = matrix(layer.to_dense()), factors_of(layer).to(torch.float64)
    products = [[[float(x) for x in row] for row in multiplied_out(group)] for group in groups_of(factors)]
    exact = torch.tensor(products, dtype=torch.float64).reshape(found.shape)
    absolute = LayerFactors(
        factors.expand.abs(), factors.reduce.abs(), None, None if factors.project is None else factors.project.abs()
    )
    bound = torch.finfo(dtype).eps / 2 * exact.abs() + (3 + 2 * both) * 2.0**-52 * absolute.product()
    assert found.dtype is dtype
    assert ((found.double() - exact).abs() <= bound).all()


def groups_of(factors: LayerFactors) -> list[LayerFactors]:
    """The factors of each group on its own."""
    if factors.expand.ndim == 2:
        return [factors]
    return [LayerFactors(expand, reduce) for expand, reduce in zip(factors.expand, factors.reduce, strict=True)]


def multiplied_out(factors: LayerFactors) -> list[list[Fraction]]:
    """The product of a layer's factors, exactly."""

    def times(left: list[list[Fraction]], right: list[list[Fraction]]) -> list[list[Fraction]]:
        columns = list(zip(*right, strict=True))
        return [
            [sum((a * b for a, b in zip(row, column, strict=True)), Fraction()) for column in columns] for row in left
        ]

    def exactly(values: Tensor) -> list[list[Fraction]]:
        return [[Fraction(value) for value in row] for row in values.tolist()]

    expand, reduce = exactly(factors.expand), exactly(factors.reduce)
    if factors.project is None:
        return times(expand, reduce)
    project, taps = exactly(factors.project), factors.reduce.shape[1] // len(factors.project)
    # One tap at a time: [r, q] from the core, then its columns back in their places.
    found = [times(times(expand, [row[tap::taps] for row in reduce]), project) for tap in range(taps)]
    return [[entry for column in zip(*rows, strict=True) for entry in column] for rows in zip(*found, strict=True)]


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel lengths")
@settings(max_examples=100)
@given(st.one_of(convolutions(), timm_convolutions(), transposed()))
def test_means_of_the_columns_are_those_of_the_rows(case: tuple[nn.Module, Tensor]) -> None:
    dense, x = case
    kind = kind_of(dense)
    assert kind is not None
    torch.testing.assert_close(kind.input_mean(dense, x), kind.input_rows(dense, x).mean(0))


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel lengths")
@settings(max_examples=100)
@given(layers)
def test_rows_times_matrix_are_the_outputs(case: tuple[nn.Module, Tensor]) -> None:
    dense, x = case
    kind = kind_of(dense)
    assert kind is not None
    bias = dense.bias if isinstance(dense.bias, Tensor) else 0
    torch.testing.assert_close(kind.input_rows(dense, x) @ kind.matrix(dense).T + bias, kind.rows(dense(x)))


@settings(max_examples=50)
@given(layers)
def test_multiplied_out_it_is_the_layer_that_it_reads_as(case: tuple[nn.Module, Tensor]) -> None:
    dense, x = case
    layer = low_rank_like(dense, 2).eval()
    multiplied = layer.to_dense()
    assert layer.restores_class is (type(multiplied) is type(dense))
    assert not multiplied.training
    torch.testing.assert_close(multiplied.weight.detach(), layer.weight.detach(), rtol=0, atol=1e-14)
    assert layer.weight.shape == dense.weight.shape
    torch.testing.assert_close(multiplied(x), layer(x), rtol=0, atol=1e-12)
