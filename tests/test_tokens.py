"""Tokens tell functions apart, not the names, order and signs of their neurons."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from hypercompress.errors import BudgetError
from hypercompress.generator.hypernetwork import tokens_of
from hypercompress.generator.start import Start, start_of
from hypercompress.inspection import inspect
from hypercompress.sketch import sketch
from hypercompress.specs import Budget, ModelSpec, Sketch
from hypercompress.tokens import (
    BANDS,
    BUDGET_FEATURES,
    CHANNEL_FEATURES,
    LAYER_FEATURES,
    SKETCH_FEATURES,
    Tokens,
    bands,
    channel_features,
    effective_rank,
)

Prepared = tuple[ModelSpec, dict[str, Sketch], Start]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prepared(model: nn.Module, x: Tensor, data: bool) -> Prepared:
    spec = inspect(model, x[:2])
    sketches = sketch(model, spec, [x] if data else None)
    return spec, sketches, start_of(spec, sketches)


def tokens(model: nn.Module, x: Tensor, data: bool, budget: Budget, refit: bool = False) -> Tokens:
    spec, sketches, start = prepared(model, x, data)
    return tokens_of(spec, sketches, start, budget, refit)


def mlp() -> nn.Module:
    model = nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 16), nn.Tanh(), nn.Linear(16, 6)).double()
    for index, parameter in enumerate(model.parameters()):
        parameter.data = randn(*parameter.shape, seed=index) * 0.4
    return model


def reordered_mlp(signs: bool) -> nn.Module:
    """Another order (and other signs) of the hidden neurons; the same function, tanh being odd."""
    model = copy.deepcopy(mlp())
    for left, right in ((0, 2), (2, 4)):
        size = model[left].out_features
        order = torch.randperm(size, generator=torch.Generator().manual_seed(left))
        sign = torch.sign(randn(size, seed=left + 7)) if signs else torch.ones(size, dtype=torch.float64)
        model[left].weight.data = sign[:, None] * model[left].weight.data[order]
        model[left].bias.data = sign * model[left].bias.data[order]
        model[right].weight.data = model[right].weight.data[:, order] * sign
    return model


def convnet() -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 20, 3, bias=False),
        nn.BatchNorm2d(20),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(20, 6),
    ).double()
    for index, tensor in enumerate([*model.parameters(), *model.buffers()]):
        if tensor.is_floating_point():
            tensor.data = randn(*tensor.shape, seed=index) * 0.3 + (1 if tensor.ndim == 1 else 0)
    for norm in (model[1], model[4]):
        norm.running_var.abs_()
    return model.eval()


def reordered_convnet() -> nn.Module:
    model = copy.deepcopy(convnet())
    for conv, norm, reader in ((0, 1, 3), (3, 4, 8)):
        order = torch.randperm(model[conv].out_channels, generator=torch.Generator().manual_seed(conv))
        model[conv].weight.data = model[conv].weight.data[order]
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(model[norm], name).data = getattr(model[norm], name).data[order]
        model[reader].weight.data = model[reader].weight.data[:, order]
    return model


@pytest.mark.parametrize("budget", [Budget(params=0.5), Budget(macs=0.7)], ids=str)
@pytest.mark.parametrize("data", [True, False], ids=["data", "no data"])
@pytest.mark.parametrize(
    ("build", "rebuild", "shape"),
    [
        (mlp, lambda: reordered_mlp(signs=False), (40, 12)),
        (mlp, lambda: reordered_mlp(signs=True), (40, 12)),
        (convnet, reordered_convnet, (40, 3, 7, 7)),
    ],
    ids=["permuted", "signs flipped", "channels permuted"],
)
def test_equal_functions_have_equal_tokens(
    build: Callable[[], nn.Module], rebuild: Callable[[], nn.Module], shape: tuple[int, ...], data: bool, budget: Budget
) -> None:
    one, other, x = build(), rebuild(), randn(*shape, seed=9)
    torch.testing.assert_close(one(x), other(x), rtol=1e-9, atol=1e-9)
    ours, theirs = tokens(one, x, data, budget), tokens(other, x, data, budget)
    for name in ("layers", "sketches", "budget", "order"):
        torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=1e-4, atol=1e-4)
    other[0].weight.data[0] *= 4
    assert not torch.allclose(tokens(other, x, data, budget).layers, ours.layers, atol=1e-3)


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
@pytest.mark.parametrize("data", [True, False], ids=["data", "no data"])
def test_tokens_of_untrained_teachers_are_finite(name: str, data: bool) -> None:
    model = timm.create_model(name, pretrained=False).eval()
    x = torch.randn(4, *model.pretrained_cfg["input_size"])
    found = tokens(model, x, data, Budget(params=0.6))
    n = len(inspect(model, x[:1]).candidates)
    assert found.layers.shape == (n, LAYER_FEATURES)
    assert found.sketches.shape == (n, BANDS, SKETCH_FEATURES)
    assert found.budget.shape == (BUDGET_FEATURES,)
    for values in (found.layers, found.sketches, found.budget):
        assert values.isfinite().all()
        assert values.abs().max() < 12


@pytest.mark.parametrize("zero", ["a layer", "every layer", "the images", "the norms"])
@pytest.mark.parametrize("data", [True, False], ids=["data", "no data"])
def test_tokens_of_degenerate_teachers_are_finite(zero: str, data: bool) -> None:
    model, x = convnet(), randn(8, 3, 7, 7)
    if zero == "the norms":
        model[4].weight.data.zero_()
    if zero in ("a layer", "every layer"):
        model[3].weight.data.zero_()
    if zero == "every layer":
        model[0].weight.data.zero_()
        model[8].weight.data.zero_()
    found = tokens(model, x * (zero != "the images"), data, Budget(params=0.6))
    assert all(values.isfinite().all() for values in (found.layers, found.sketches, found.budget))
    spec, sketches, start = prepared(model, x, data)
    for layer in spec.candidates:
        guess = start.curvatures[layer.name].fisher.diagonal()
        assert channel_features(layer, sketches[layer.name], guess).isfinite().all()


class Branches(nn.Module):
    """A layer, a branch beside an identity, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Linear(12, 12), nn.Linear(12, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).tanh()
        return self.head(x + self.branch(x))


@pytest.mark.parametrize("data", [True, False], ids=["data", "no data"])
def test_a_layer_without_energy_hides_nothing_of_the_others(data: bool) -> None:
    model = Branches().double()
    for index, parameter in enumerate(model.parameters()):
        parameter.data = randn(*parameter.shape, seed=index) * 0.4
    model.branch.weight.data.zero_()
    spec, sketches, start = prepared(model, randn(32, 12), data)
    found = tokens_of(spec, sketches, start, Budget(params=0.6), refit=False)
    living = [layer.name != "branch" for layer in spec.candidates]
    assert sum(living) == 2
    assert found.layers.isfinite().all()
    assert found.layers[torch.tensor(living)].abs().max() < 3  # where the energy of a layer to the others is clipped


@pytest.mark.parametrize("layer", ["0", "3", "8"])
def test_channel_features_follow_the_channels(layer: str) -> None:
    x, order = randn(4, 3, 7, 7), torch.randperm(12, generator=torch.Generator().manual_seed(0))
    found = []
    for model in (convnet(), reordered_convnet()):
        spec, sketches, start = prepared(model, x, data=False)
        item = next(item for item in spec.candidates if item.name == layer)
        found.append(channel_features(item, sketches[layer], start.curvatures[layer].fisher.diagonal()))
    assert found[0].shape[1] == CHANNEL_FEATURES
    if layer == "0":
        torch.testing.assert_close(found[1], found[0][order], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1].sort(0).values, found[0].sort(0).values, rtol=1e-4, atol=1e-4)


def test_tokens_tell_budgets_units_and_a_refit_apart() -> None:
    model, x = mlp(), randn(20, 12)
    base = tokens(model, x, True, Budget(params=0.5)).budget
    others = [
        tokens(model, x, True, Budget(params=0.6)).budget,
        tokens(model, x, True, Budget(macs=0.5)).budget,
        tokens(model, x, True, Budget(params=0.5), refit=True).budget,
    ]
    assert all(not torch.allclose(base, other, atol=1e-3) for other in others)
    with pytest.raises(BudgetError):
        tokens(model, x, True, Budget(params=0.01))


@pytest.mark.parametrize(("m", "rank"), [(1, 1), (8, 1), (40, 10), (40, 40), (513, 100)])
def test_bands_are_quarters_of_the_kept_and_widening_ranges_of_the_discarded(m: int, rank: int) -> None:
    found = bands(m, rank)
    assert len(found) == m
    assert (found.diff() >= 0).all()
    assert int(found[:rank].max()) <= 3
    assert m == rank or int(found[rank:].min()) >= 4
    if rank % 4 == 0:
        assert torch.bincount(found[:rank], minlength=4).tolist() == [rank // 4] * 4


def test_effective_rank_counts_equal_values() -> None:
    values = torch.zeros(10)
    values[:4] = 3.0
    assert effective_rank(values) == pytest.approx(0.4, rel=1e-6)
    assert effective_rank(torch.ones(10)) == pytest.approx(1.0)
    assert 0 < effective_rank(torch.zeros(10)) <= 1
