"""Convolutions that were given a weight of other channels or another kernel than they say: torch runs them by it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hypercompress import Budget, compress, from_pretrained
from hypercompress.factorize import plain_frame
from hypercompress.kinds import ConvKind, fill, kind_of, low_rank_like
from hypercompress.specs import Side


def grey(conv: nn.Module) -> nn.Module:
    conv.weight = nn.Parameter(conv.weight.data.sum(1, keepdim=True))
    return conv


def pruned(conv: nn.Module) -> nn.Module:
    axis = 1 if conv.transposed else 0
    conv.weight = nn.Parameter(conv.weight.data.narrow(axis, 0, conv.weight.shape[axis] // 2))
    conv.bias = nn.Parameter(conv.bias.data[: len(conv.bias) // 2])
    return conv


def cropped(conv: nn.Module) -> nn.Module:
    conv.weight, conv.padding = nn.Parameter(conv.weight.data[..., 1:-1, 1:-1].clone()), (1, 1)
    return conv


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "grey": (lambda: grey(nn.Conv2d(3, 12, 5, padding=2)), (2, 1, 9, 9)),
    "pruned outputs": (lambda: pruned(nn.Conv2d(4, 24, 3)), (2, 4, 9, 9)),
    "pruned outputs of groups": (lambda: pruned(nn.Conv2d(8, 48, 3, groups=2)), (2, 8, 9, 9)),
    "another kernel": (lambda: cropped(nn.Conv2d(3, 12, 5, padding=2)), (2, 3, 9, 9)),
    "transposed": (lambda: pruned(nn.ConvTranspose2d(6, 12, 3, stride=2)), (2, 6, 5, 5)),
}


@pytest.mark.parametrize("case", CASES)
def test_full_rank_is_the_dense_layer(case: str) -> None:
    torch.manual_seed(0)
    build, shape = CASES[case]
    dense, x = build().double(), torch.randn(shape, dtype=torch.float64)
    kind = kind_of(dense)
    assert kind is not None
    weight = kind.matrix(dense)
    side = Side.OUTPUT if weight.shape[-2] <= weight.shape[-1] else Side.INPUT
    twin = low_rank_like(dense, min(weight.shape[-2:]))
    fill(twin, plain_frame(weight, side).factors(weight, twin.rank), dense.bias)
    with torch.no_grad():
        torch.testing.assert_close(twin(x), dense(x))
        torch.testing.assert_close(twin.to_dense()(x), dense(x))
        if isinstance(kind, ConvKind):
            rows = kind.input_rows(dense, x)
            torch.testing.assert_close(rows.mean(-2), kind.input_mean(dense, x))
            product = (rows @ weight.mT).movedim(-2, 0).flatten(1) + dense.bias
            torch.testing.assert_close(product, kind.rows(dense(x)))


class Network(nn.Sequential):
    """A classifier [b, 1, h, w] -> [b, 10] whose first layer was made for three channels, the second for 24 outputs."""

    def __init__(self) -> None:
        first, second = grey(nn.Conv2d(3, 24, 7, padding=3)), pruned(nn.Conv2d(24, 24, 3, bias=True))
        super().__init__(first, nn.ReLU(), second, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10))


@pytest.mark.parametrize("generator", ["svd", "kfac"])
def test_a_student_goes_all_the_way(generator: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = Network().eval(), torch.randn(64, 1, 12, 12)
    student = compress(model, Budget(params=0.25), x.split(8), generator)
    assert {"0", "2"} <= set(student.ranks)
    student.save_pretrained(tmp_path / "s")
    loaded: Callable[[Tensor], Tensor] = from_pretrained(tmp_path / "s", Network())
    assert torch.equal(loaded(x), student(x))
    torch.testing.assert_close(student.to_dense()(x), student(x), rtol=1e-4, atol=1e-4)
