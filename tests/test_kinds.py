"""Every kind of layer: full rank is the dense layer, rows and matrix give its output, and a user's kind is a kind."""

import copy
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import timm
import torch
from hypothesis import given, settings
from timm.layers.conv2d_same import Conv2dSame
from timm.layers.linear import Linear as TimmLinear
from timm.layers.std_conv import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame
from torch import Tensor, nn

import hypercompress
from hypercompress import Budget, compress, from_pretrained, register_kind
from hypercompress.cli.inputs import Source, load_dense
from hypercompress.cli.terminal import Terminal
from hypercompress.errors import ModelError
from hypercompress.factorize import by_channel, plain_frame
from hypercompress.inspection import inspect
from hypercompress.kinds import ConvKind, LowRank, factors_of, fill, kind_of, low_rank_like
from hypercompress.kinds.registry import _KINDS
from hypercompress.specs import LayerFactors, Side, Status
from tests.strategies import grouped

SAME_CONVS: dict[type[nn.Module], dict[str, Any]] = {Conv2dSame: {}, StdConv2dSame: {}, ScaledStdConv2dSame: {}}


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A convolution of one to three dimensions, of any geometry torch allows, with an input that fits."""
    dims = draw(st.integers(1, 3))
    each = st.tuples(*[st.integers(1, 3)] * dims)
    kernel, dilation = draw(each), draw(st.tuples(*[st.integers(1, 2)] * dims))
    mode = draw(st.sampled_from(["zeros", "replicate", "circular"] + ["reflect"] * (dims < 3)))
    padding = draw(st.one_of(st.just("same"), st.just("valid"), st.tuples(*[st.integers(0, 2)] * dims)))
    stride = (1,) * dims if padding == "same" else draw(each)
    channels = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    conv = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims](
        *channels, kernel, stride, padding, dilation, bias=draw(st.booleans()), padding_mode=mode, dtype=torch.float64
    )
    return conv, random(2, channels[0], *(draw(st.integers(7, 9)) for _ in range(dims)))


@st.composite
def timm_convolutions(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """timm's own: standardised weights, padding by the size of the input."""
    module_class = draw(st.sampled_from([*SAME_CONVS, StdConv2d, ScaledStdConv2d]))
    channels, kernel = (draw(st.integers(2, 4)), draw(st.integers(1, 5))), draw(st.integers(1, 3))  # 1 has no variance
    options = {"stride": draw(st.integers(1, 3)), "dilation": draw(st.integers(1, 2)), "bias": draw(st.booleans())}
    conv = module_class(*channels, kernel, **options).double()
    if hasattr(conv, "gain"):
        conv.gain.data = random(*conv.gain.shape)
    return conv, random(2, channels[0], draw(st.integers(7, 9)), draw(st.integers(7, 9)))


@st.composite
def linears(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    inside, outside, lead = (
        draw(st.integers(1, 12)),
        draw(st.integers(1, 12)),
        draw(st.lists(st.integers(1, 3), max_size=3)),
    )
    module_class = draw(st.sampled_from([nn.Linear, TimmLinear]))
    dense = module_class(inside, outside, bias=draw(st.booleans()), dtype=torch.float64)
    return dense, random(*lead, inside)


@st.composite
def transposed(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """A transposed convolution of one to three dimensions, of any geometry torch allows, with an input that fits."""
    dims = draw(st.integers(1, 3))
    each = st.tuples(*[st.integers(1, 3)] * dims)
    kernel, stride, dilation = draw(each), draw(each), draw(st.tuples(*[st.integers(1, 2)] * dims))
    padding = draw(st.tuples(*[st.integers(0, 2)] * dims))
    added = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    channels, bias = (draw(st.integers(1, 4)), draw(st.integers(1, 5))), draw(st.booleans())
    conv = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}[dims](
        *channels, kernel, stride, padding, added, bias=bias, dilation=dilation, dtype=torch.float64
    )
    return conv, random(2, channels[0], *(draw(st.integers(5, 6)) for _ in range(dims)))


KINDS = {"conv": convolutions(), "timm": timm_convolutions(), "linear": linears(), "transposed": transposed()}
layers = st.one_of(*KINDS.values())


def matrix(dense: nn.Module) -> Tensor:
    kind = kind_of(dense)
    assert kind is not None
    return kind.matrix(dense)


def full_rank_on_both_sides(dense: nn.Module) -> LowRank:
    """Tucker-2 with every output and every input channel kept."""
    weight, kind = matrix(dense), kind_of(dense)
    assert kind is not None
    taps = kind.taps(dense)
    inner = plain_frame(by_channel(weight, taps), Side.INPUT)
    layer = low_rank_like(dense, len(weight), len(inner.energy))
    factors = plain_frame(weight, Side.OUTPUT).factors(weight, len(weight), (inner.left, inner.right), taps)
    fill(layer, factors, dense.bias if isinstance(dense.bias, Tensor) else None)
    return layer


def full_rank(dense: nn.Module) -> LowRank:
    weight = matrix(dense)
    side = Side.OUTPUT if weight.shape[0] <= weight.shape[1] else Side.INPUT
    layer = low_rank_like(dense, min(weight.shape))
    bias = dense.bias
    fill(layer, plain_frame(weight, side).factors(weight, layer.rank), bias if isinstance(bias, Tensor) else None)
    return layer


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel lengths")
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=500)
@given(st.data())
def test_full_rank_is_the_dense_layer(kind: str, data: st.DataObject) -> None:
    dense, x = data.draw(KINDS[kind])
    wanted = dense(x)
    tolerance = 1e-10 * float(wanted.detach().abs().max())
    torch.testing.assert_close(full_rank(dense)(x), wanted, rtol=0, atol=tolerance)


@pytest.mark.filterwarnings("ignore:Using padding=.same. with even kernel lengths")
@settings(max_examples=500)
@given(st.one_of(convolutions(), timm_convolutions()))
def test_full_rank_on_both_sides_is_the_dense_layer(case: tuple[nn.Module, Tensor]) -> None:
    dense, x = case
    wanted, layer = dense(x), full_rank_on_both_sides(dense)
    tolerance = 1e-10 * float(wanted.detach().abs().max())
    torch.testing.assert_close(layer(x), wanted, rtol=0, atol=tolerance)
    torch.testing.assert_close(layer.to_dense()(x), wanted, rtol=0, atol=tolerance)
    torch.testing.assert_close(factors_of(layer).product(), matrix(dense), rtol=0, atol=tolerance)


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


def test_device_and_dtype_are_those_of_the_dense_layer() -> None:
    with torch.device("meta"):
        assert low_rank_like(nn.Conv2d(3, 5, 3), 1).reduce.weight.device.type == "meta"
    assert low_rank_like(nn.Linear(4, 4, dtype=torch.bfloat16), 1).expand.weight.dtype is torch.bfloat16


def test_input_channels_are_projected_only_before_a_kernel() -> None:
    with pytest.raises(TypeError, match="expected a kind of layer with a kernel"):
        low_rank_like(nn.Linear(4, 4), 1, 2)


def test_another_class_is_refused_and_so_is_a_subclass() -> None:
    class Special(nn.Linear):
        """May compute anything."""

    for module in (nn.BatchNorm2d(3), Special(3, 4)):
        with pytest.raises(TypeError, match=rf"received {type(module).__name__}; expected a registered kind of layer"):
            low_rank_like(module, 1)


def test_gain_of_a_standardised_convolution_is_folded_and_counted() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        ScaledStdConv2d(8, 24, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5)
    ).eval()
    x = torch.randn(40, 8, 6, 6)
    layer = inspect(model, x[:2]).layers[0]
    assert (layer.status, layer.kind, layer.folded, layer.dense_params) == (
        Status.FACTORED,
        "std_conv2d",
        24,
        24 * 72 + 24,
    )
    student = compress(model, Budget(params=0.6), x.split(8), "kfac")
    assert "0" in student.ranks
    assert sum(p.numel() for p in student.parameters()) == student.report["student"]["params"]


def documented() -> dict[str, Any]:
    """What the code of docs/layer_kinds.md defines, registration included."""
    page = Path(__file__).parents[1] / "docs" / "layer_kinds.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 30
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102  (our own page)
    return names


def test_a_users_kind_goes_all_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = dict(_KINDS)
    monkeypatch.setattr("hypercompress.kinds.registry._KINDS", dict(known))
    equalised, kind = (documented()[name] for name in ("EqualisedLinear", "EqualisedKind"))
    monkeypatch.setattr("hypercompress.kinds.registry._KINDS", known)  # as before the page was run

    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(equalised(20, 40), nn.ReLU(), equalised(40, 6)).eval()

    teacher, x = network(), torch.randn(120, 20, generator=torch.Generator().manual_seed(1))
    before = copy.deepcopy(teacher.state_dict())
    with pytest.raises(hypercompress.errors.BudgetError):
        compress(teacher, Budget(params=0.5), x.split(10), "kfac")
    register_kind(equalised, kind())
    student = compress(teacher, Budget(params=0.5), x.split(10), "kfac")
    assert student.ranks
    assert {row["kind"] for row in student.report["layers"]} == {"equalised"}
    assert sum(p.numel() for p in student.parameters()) <= 0.5 * sum(p.numel() for p in teacher.parameters())
    assert all(torch.equal(before[key], value) for key, value in teacher.state_dict().items())
    student.save_pretrained(tmp_path / "student")
    again = from_pretrained(tmp_path / "student", skeleton=network())
    assert torch.equal(again(x), student(x))
    torch.testing.assert_close(full_rank(teacher[0])(x), teacher[0](x), rtol=1e-4, atol=1e-4)


def test_a_student_of_standardised_convolutions_is_not_compressed_again(tmp_path: Path) -> None:

    torch.manual_seed(0)
    teacher = timm.create_model("test_nfnet", pretrained=False, num_classes=5).eval()
    student = compress(teacher, Budget(params=0.5), None, "svd")
    assert any(not layer.restores_class for layer in student.modules() if isinstance(layer, LowRank))
    student.save_pretrained(tmp_path / "student")
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(from_pretrained(tmp_path / "student")(images), student(images))
    torch.testing.assert_close(student.to_dense()(images), student(images), rtol=1e-3, atol=1e-4)
    with pytest.raises(ModelError, match="weight-standardised convolution; expected layers that can be multiplied out"):
        load_dense(Source(str(tmp_path / "student")), None, Terminal(True))


def test_conv_kinds_say_how_they_read() -> None:
    kind = kind_of(nn.Conv3d(2, 3, (1, 2, 3)))
    assert isinstance(kind, ConvKind)
    assert kind.taps(nn.Conv3d(2, 3, (1, 2, 3))) == 6
    assert kind.strided(nn.Conv3d(2, 3, 3, stride=(1, 2, 1)))
    assert not kind.strided(nn.Conv3d(2, 3, 3))
