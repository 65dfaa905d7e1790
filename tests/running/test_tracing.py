"""What one traced pass says of norms: which can give back what truncation takes from the layer before it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypercompress import Budget, compress
from hypercompress.errors import ModelError
from hypercompress.inspection import inspect
from hypercompress.running.counting import counting
from hypercompress.specs import Unit
from tests.lookup import row


def macs(model: nn.Module, x: Tensor) -> int:
    """Of one sample of ``x``, by a pass of all."""
    with torch.no_grad(), counting() as counter:
        model(x)
    return int(counter.get_total_flops()) // 2 // len(x)


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shared", ["norm of two layers", "two norms of a layer"])
def test_norm_that_cannot_stand_for_one_layer_is_no_follower(shared: str) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)
            self.norm, self.other = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            if shared == "norm of two layers":
                return (self.norm(self.a(x)) + self.norm(self.b(x))).mean((2, 3))
            y = self.a(x)
            return (self.norm(y) + self.other(y)).mean((2, 3))

    spec = inspect(Shared(), torch.randn(2, 3, 8, 8))
    assert row(spec, "a").follower is None


OTHERS: dict[str, tuple[bool, Any]] = {  # whether it reads the numbers
    "shortcut": (True, lambda x: x),
    "shortcut in place": (True, lambda x: torch.zeros_like(x).add_(x)),
    "view": (True, lambda x: x.flatten(2)[..., :1, None]),
    "transposed": (True, lambda x: x.mT.mT),
    "keyword": (True, lambda x: torch.relu(input=x)),
    "module": (True, nn.AvgPool2d(1)),
    "shape": (False, lambda x: x.shape[0] + x.size(1) + x.dim() + len(x) + x.stride(0)),
    "type": (False, lambda x: float(x.dtype == torch.float32 and x.is_floating_point() and x.is_contiguous())),
    "nothing": (False, lambda _: 1),
}


@pytest.mark.parametrize("other", OTHERS)
def test_norm_is_no_follower_where_somebody_else_reads_the_output(other: str) -> None:
    """The stem of a pre-activation network: a shift that the norm takes back is missing in the shortcut."""

    class Stem(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm, self.conv = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
            self.dropout = nn.Sequential(nn.Dropout(), nn.Identity())

        def forward(self, x: Tensor) -> Tensor:
            x = self.dropout(self.stem(x)).contiguous()
            return (self.conv(self.norm(x)) + OTHERS[other][1](x)).mean((2, 3))

    spec = inspect(Stem(), torch.randn(2, 3, 8, 8))
    assert row(spec, "stem").follower == (None if OTHERS[other][0] else "norm")


def test_norm_is_no_follower_of_an_output_of_the_model() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.norm = nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = self.fc(x)
            return y, self.norm(y)

    x = torch.randn(3, 4)
    for index, follower in enumerate((None, "norm")):
        assert row(inspect(Two(), x, lambda model, batch, i=index: model(batch)[i]), "fc").follower == follower


@pytest.mark.parametrize("size", [(8, 12), (8, 4, 12), (12,)])
def test_batch_norm_of_another_axis_is_no_follower(size: tuple[int, ...]) -> None:
    """A linear layer's channels come last, a BatchNorm's are axis 1: their equal lengths say nothing."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(12, 8, bias=False)
            self.norm = nn.BatchNorm2d(8) if len(size) == 3 else nn.BatchNorm1d(8)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.fc(x)).flatten(1)

    spec = inspect(Positions(), torch.randn(3, *size))
    assert row(spec, "fc").follower == ("norm" if len(size) == 1 else None)


class Named(nn.Module):
    """A norm by the moments of the batch, or by its own."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv = nn.Conv2d(3, 16, 3, bias=False)
        self.norm = nn.BatchNorm2d(16, track_running_stats=how != "none kept")
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "training":
            self.norm.train()
        y: Tensor = self.head(self.norm(self.conv(x)).relu().mean((2, 3)))
        return y


@pytest.mark.parametrize("how", ["training", "none kept", "its own"])
def test_a_batch_norm_by_the_moments_of_the_batch_is_no_follower(how: str) -> None:
    follower = row(inspect(Named(how), torch.randn(4, 3, 8, 8)), "conv").follower
    assert follower == ("norm" if how == "its own" else None)


def test_what_a_batch_norm_by_the_batch_gives_back_itself_is_not_given_back_again() -> None:
    torch.manual_seed(0)
    x = torch.randn(96, 3, 10, 10) + 1
    model = Named("training")
    model.train()(x)
    model.eval()
    errors = {}
    for generator in ("svd", "kfac"):
        student = compress(model, Budget(params=0.5), list(x.split(32)), generator, refit=False, norms=False)
        with torch.no_grad():
            errors[generator] = float((student(x) - model(x)).norm())
    assert errors["kfac"] < errors["svd"]


class Experts(nn.Module):
    """Each sample is seen by one of several; or two samples by one call; or a transposed convolution sees few."""

    def __init__(self, how: str, count: int = 4) -> None:
        super().__init__()
        self.how, self.inside, self.out = how, nn.Conv2d(2, 8, 1), nn.Linear(8, 5)
        make = nn.ConvTranspose2d if how == "transposed" else nn.Conv2d
        self.experts = nn.ModuleList(make(8, 8, 1) for _ in range(1 if how == "pairs" else count))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inside(x)
        if self.how == "pairs":
            x = x + self.experts[0](x.unflatten(0, (-1, 2)).mean(1)).repeat_interleave(2, 0)
        else:
            for number, expert in enumerate(self.experts):
                x = x + torch.zeros_like(x).index_add(0, (chosen := torch.arange(number, len(x), 4)), expert(x[chosen]))
        y: Tensor = self.out(x.mean((2, 3)))
        return y


@pytest.mark.parametrize("how", ["experts", "transposed", "pairs"])
def test_layers_that_run_for_some_samples_count_as_if_for_all(how: str) -> None:
    """In the model's total as well as in their rows, so that the two agree: a student costs what its report says."""
    model = Experts(how).eval()
    spec = inspect(model, torch.randn(8, 2, 1, 1))
    layers = 8 * 8 * len(model.experts) + 2 * 8 + 8 * 5
    assert spec.macs == sum(layer.dense_cost(Unit.MACS) for layer in spec.layers) == layers
    student = compress(model, Budget(params=0.7), None, "svd", example=torch.randn(8, 2, 1, 1))
    assert student.report["student"]["macs"] == sum(row["macs_after"] for row in student.report["layers"])


class InParts(nn.Module):
    """The layer gets the samples of a batch one by one, or two at a time; or some of them, while the rest goes by."""

    def __init__(self, kind: str, size: int, *, some: bool = False) -> None:
        super().__init__()
        self.size, self.some, self.inside = size, some, nn.Conv2d(2, 12, 1)
        self.each: nn.Module = nn.Linear(5, 16) if kind == "linear" else nn.Conv2d(12, 16, 3)
        self.rest, self.out = nn.Linear(12, 12), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inside(x)
        parts = list(x) if self.size == 1 else x.split(self.size)
        x = torch.cat([y if self.size > 1 else y[None] for y in map(self.each, parts)])
        if self.some:  # a router's choice: no pass of one sample tells of it
            x = x + self.rest(x[:3, :12].mean((2, 3))).mean()
        y: Tensor = self.out(x.mean((2, 3)) if isinstance(self.each, nn.Conv2d) else x.mean((1, 2)))
        return y


@pytest.mark.parametrize("some", [False, True], ids=["all run so", "others run for some"])
@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_layer_that_gets_a_batch_in_parts_counts_as_if_it_got_it_whole(kind: str, size: int, some: bool) -> None:
    model, x = InParts(kind, size, some=some).eval(), torch.randn(8, 2, 8, 5)
    whole, spec = (inspect(InParts(kind, n, some=some).eval(), x) for n in (8, size))
    assert row(spec, "each").positions == row(whole, "each").positions == (12 * 8 if kind == "linear" else 6 * 3)
    assert row(spec, "each").input_positions == row(whole, "each").input_positions
    assert spec.macs == whole.macs
    if not some:
        assert spec.macs == inspect(model, x[:1]).macs == macs(model, x) == macs(model, x[:1])


def test_a_budget_of_a_model_that_loops_over_samples_is_met() -> None:
    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.each, self.head = nn.Linear(16, 96), nn.Linear(96, 96), nn.Linear(96, 10)

        def forward(self, x: Tensor) -> Tensor:
            x = self.tokens(x).relu().mean(1)
            y: Tensor = self.head(torch.stack([self.each(v).relu() for v in x]))
            return y

    torch.manual_seed(0)
    model, x = Loop().eval(), torch.randn(32, 4, 16)
    model.each.weight.data = torch.randn(96, 2) @ torch.randn(2, 96) / 10  # cheap to factor
    student = compress(model, Budget(macs=0.7), list(x.split(8)), "kfac")
    assert student.report["student"]["macs"] == macs(student, x[:1]) <= 0.7 * macs(model, x[:1])


class Made(nn.Module):
    """A weight is made in the forward; or the samples of a batch are compared, or get more where they are many."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.inside, self.out = how, nn.Linear(12, 12), nn.Linear(12, 5)
        self.left, self.right = nn.Parameter(torch.randn(12, 7)), nn.Parameter(torch.randn(7, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inside(x)
        if self.how == "made":
            x = x @ (self.left @ self.right)
        elif self.how == "compared":
            x = (x @ x.mT).softmax(1) @ x
        elif len(x) > 1:
            x = x @ self.left @ self.right
        y: Tensor = self.out(x)
        return y


@pytest.mark.parametrize("how", ["made", "compared", "many"])
def test_what_no_layer_computes_once_for_a_batch_counts_whole(how: str) -> None:
    """Where the pass of a batch is more than a pass for each of its samples, that of the batch counts."""
    model, x = Made(how).eval(), torch.randn(8, 12)
    alone, several = (inspect(model, x[:size]).macs for size in (1, 8))
    assert alone == macs(model, x[:1])
    assert several == (macs(model, x) if how != "made" else alone)
    assert (macs(model, x) < alone) == (how == "made")


def test_a_layer_under_vmap_is_unsupported() -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.each, self.head = nn.Linear(12, 12), nn.Linear(12, 12)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(torch.vmap(self.each)(x).mean(1))
            return y

    x = torch.randn(6, 5, 12)
    assert "torch.vmap" in row(inspect(Mapped(), x), "each").reason
    assert set(compress(Mapped(), Budget(params=0.8), [x, x], "kfac").ranks) == {"head"}


@pytest.mark.parametrize("output", [{"logits": X}, (X, None), X.numpy()], ids=["dict", "tuple", "array"])
def test_a_forward_fn_that_gives_no_tensor_is_told_so(output: Any) -> None:
    with pytest.raises(ModelError, match=rf"a forward_fn that returns {type(output).__name__}; expected the tensor"):
        inspect(nn.Sequential(nn.Linear(4, 4)), X, lambda model, batch: (model(batch), output)[1])


def test_an_output_that_no_gradient_reaches_is_told_so() -> None:
    model = nn.Sequential(nn.Linear(4, 40), nn.Linear(40, 4))
    with pytest.raises(ModelError, match="received an output that is detached from the model"):
        compress(model, Budget(params=0.5), [X] * 3, "kfac", forward_fn=lambda network, x: network(x).detach())
