"""Every kind of layer: full rank is the dense layer, and a user's kind is a kind."""

import copy
import re
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import timm
import torch
from hypothesis import given, settings
from timm.layers.std_conv import ScaledStdConv2d
from torch import Tensor, nn
from torchvision.models.video.resnet import Conv3DSimple

import hypercompress
from hypercompress import Budget, compress, from_pretrained, register_kind
from hypercompress.cli.inputs import Source, load_dense
from hypercompress.cli.terminal import Terminal
from hypercompress.errors import ModelError
from hypercompress.factorize import by_channel, plain_frame
from hypercompress.inspection import inspect
from hypercompress.kinds import ConvKind, LowRank, factors_of, fill, kind_of, low_rank_like
from hypercompress.kinds.registry import _KINDS
from hypercompress.specs import Side, Status
from tests.drawn import KINDS, convolutions, matrix, timm_convolutions


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


def test_device_and_dtype_are_those_of_the_dense_layer() -> None:
    with torch.device("meta"):
        assert low_rank_like(nn.Conv2d(3, 5, 3), 1).reduce.weight.device.type == "meta"
    assert low_rank_like(nn.Linear(4, 4, dtype=torch.bfloat16), 1).expand.weight.dtype is torch.bfloat16


def test_input_channels_are_projected_only_before_a_kernel() -> None:
    with pytest.raises(TypeError, match="expected a kind of layer with a kernel"):
        low_rank_like(nn.Linear(4, 4), 1, 2)


def test_a_subclass_that_computes_as_its_class_is_of_its_kind() -> None:
    class Initialised(nn.Linear):
        """Starts another way; computes as a linear layer does."""

        def __init__(self, inside: int, out: int) -> None:
            super().__init__(inside, out)
            self.reset_parameters()

        def reset_parameters(self) -> None:
            nn.init.orthogonal_(self.weight)
            nn.init.zeros_(self.bias)

        @staticmethod
        def rate() -> float:
            return 0.1

    class Again(Initialised):
        pass

    assert kind_of(Again(3, 4)) is kind_of(nn.Linear(3, 4))
    assert kind_of(Conv3DSimple(3, 4)) is kind_of(nn.Conv3d(3, 4, 3))  # torchvision's, of networks for videos
    torch.manual_seed(0)
    teacher, x = nn.Sequential(Again(20, 40), nn.ReLU(), Again(40, 6)).eval(), torch.randn(64, 20)
    student = compress(teacher, Budget(params=0.5), x.split(16), "kfac", final_fit=False)
    assert set(student.ranks) == {"0", "2"}
    dense = student.to_dense()
    assert [type(layer) for layer in (dense[0], dense[2])] == [nn.Linear, nn.Linear]  # whose start nobody needs
    torch.testing.assert_close(dense(x), student(x), rtol=1e-4, atol=1e-5)


class Doubled:
    """What is mixed in before a layer's class computes before it."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * nn.Linear.forward(self, x)  # type: ignore[arg-type]


def test_another_class_is_refused_and_so_is_a_subclass_that_may_compute_another_thing() -> None:
    class Own(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (as torch calls it)
            return super().forward(input).relu()

    class Inside(nn.Conv2d):
        def _conv_forward(self, *args: Any) -> Tensor:
            return super()._conv_forward(*args).relu()

    class Penalised(nn.Linear):
        def penalty(self) -> Tensor:  # which a model may ask for in training alone
            return self.weight.square().sum()

    class Shows(nn.Linear):
        def __getattr__(self, name: str) -> Any:
            return super().__getattr__(name)

    class Below(Own):
        pass

    class Mixed(Doubled, nn.Linear):
        pass

    parametrised = nn.Linear(3, 4)
    nn.utils.parametrize.register_parametrization(parametrised, "bias", nn.ReLU())  # of a class with a property
    for module in (
        nn.BatchNorm2d(3),
        Own(3, 4),
        Inside(3, 4, 1),
        parametrised,
        Shows(3, 4),
        Below(3, 4),
        Mixed(3, 4),
        Penalised(3, 4),
    ):
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
    page = Path(__file__).parents[2] / "docs" / "layer_kinds.md"
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
