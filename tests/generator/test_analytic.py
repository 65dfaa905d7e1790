"""The closed-form generators, and how biases and BatchNorms give back what truncation takes."""

import pytest
import torch
from torch import Tensor, nn

from hypercompress.errors import GeneratorError
from hypercompress.generator import ANALYTIC
from hypercompress.inspection import inspect
from hypercompress.sketch import sketch
from hypercompress.specs import Budget, Generation
from hypercompress.student import build_student


def images(count: int = 64) -> Tensor:
    """Channels that share a large mean: what truncation loses is mostly constant."""
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(6, 6, generator=generator)
    x = torch.einsum("bchw,cd->bdhw", torch.randn(count, 6, 5, 5, generator=generator), mix)
    return x + 4 * torch.randn(6, 1, 1, generator=generator)


def teacher(bias: bool, norm: bool) -> nn.Module:
    layers = [nn.Conv2d(6, 12, 3, padding=1, bias=bias), nn.BatchNorm2d(12) if norm else nn.Identity()]
    model = nn.Sequential(*layers, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))
    model.train()(images())
    if norm:
        model[1].weight.data.uniform_(0.5, 2)
        model[1].bias.data.normal_()
        for _ in range(60):
            model(images())
    return model.eval()


def generated(model: nn.Module, name: str, share: float = 0.5) -> tuple[Generation, nn.Module]:
    spec = inspect(model, images(2))
    generation = ANALYTIC[name].generate(spec, sketch(model, spec, [images()]), Budget(params=share))
    assert "0" in generation.factors.layers
    return generation, build_student(model, spec, generation)


def means(model: nn.Module, at: int) -> Tensor:
    with torch.no_grad():
        return model[: at + 1](images()).mean((0, 2, 3))


@pytest.mark.parametrize("name", ["whitened", "kfac"])
@pytest.mark.parametrize("bias", [True, False])
def test_mean_behind_the_layer_is_kept_by_its_bias_or_its_norm(name: str, bias: bool) -> None:
    model = teacher(bias, norm=True)
    generation, student = generated(model, name)
    at = 0 if bias else 1
    wanted = means(model, at)
    if not bias:  # a norm that gives variance back stretches about its running mean, where the output is its bias
        stretch = (model[1].weight + generation.factors.deltas["1.weight"]) / model[1].weight
        wanted = (wanted - model[1].bias) * stretch + model[1].bias
    torch.testing.assert_close(means(student.model, at), wanted.detach(), rtol=0, atol=2e-4)
    assert (generation.factors.layers["0"].bias is not None) is bias
    assert set(generation.factors.deltas) == (set() if bias else {"1.weight", "1.bias"})
    if not bias:
        assert bool(torch.any(generation.factors.deltas["1.weight"])) is (ANALYTIC[name].spread > 0)
        with pytest.raises(AssertionError):
            torch.testing.assert_close(means(student.model, 0), means(model, 0), rtol=0, atol=2e-4)


@pytest.mark.parametrize("bias", [True, False])
def test_absorbing_the_mean_reduces_the_error_of_the_output(bias: bool) -> None:
    model = teacher(bias, norm=True)
    _, student = generated(model, "kfac")
    with torch.no_grad():
        wanted = model[:2](images())
        error = float((student.model[:2](images()) - wanted).square().mean())
        if bias:
            student.model[0].bias.copy_(model[0].bias)
        else:
            student.model[1].bias.copy_(model[1].bias)
        without = float((student.model[:2](images()) - wanted).square().mean())
    assert error < without


def test_without_bias_and_norm_the_mean_is_not_centred_out() -> None:
    model = teacher(bias=False, norm=False)
    spec = inspect(model, images(2))
    sketches = sketch(model, spec, [images()])
    base = ANALYTIC["kfac"]
    layer = next(layer for layer in spec.candidates if layer.name == "0")
    assert base.metric is not None
    assert base.metric.centred
    assert not base.metric_for(layer, sketches["0"]).centred
    generation = base.generate(spec, sketches, Budget(params=0.5))
    assert generation.factors.layers["0"].bias is None


@pytest.mark.parametrize("name", ["whitened", "kfac"])
def test_generators_that_need_data_say_so(name: str) -> None:
    model = teacher(bias=True, norm=True)
    spec = inspect(model, images(2))
    with pytest.raises(GeneratorError, match=f"received no calibration data; expected some for generator '{name}'"):
        ANALYTIC[name].generate(spec, sketch(model, spec, None), Budget(params=0.5))


def test_only_kfac_predicts_nats() -> None:
    model = teacher(bias=True, norm=True)
    predicted = {name: generated(model, name)[0].plan.predicted_kl is not None for name in ANALYTIC}
    assert predicted == {"svd": False, "whitened": False, "kfac": True, "prior": False}


@pytest.mark.parametrize("name", list(ANALYTIC))
def test_generation_is_deterministic_and_leaves_the_teacher_alone(name: str) -> None:
    model = teacher(bias=False, norm=True)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    a, b = (generated(model, name)[0] for _ in range(2))
    assert a.plan.ranks == b.plan.ranks
    for key in a.factors.layers:
        assert torch.equal(a.factors.layers[key].expand, b.factors.layers[key].expand)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
