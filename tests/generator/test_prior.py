"""Curvature guessed from weights and norm statistics, checked where the guess is exact."""

import pytest
import torch
from torch import Tensor, nn

from hypercompress.factorize import Metric, weighted_frame
from hypercompress.generator.analytic import absorbs
from hypercompress.generator.prior import input_moments, output_gain, prior_curvature, rectified_moments
from hypercompress.inspection import inspect
from hypercompress.sketch import sketch
from hypercompress.specs import LayerSpec, Side, Sketch


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.5, 0.5), (-2.0, 1.0), (0.3, 3.0)])
def test_moments_of_a_rectified_gaussian(mean: float, std: float) -> None:
    z = torch.linspace(-12, 12, 400_001, dtype=torch.float64)
    weight = torch.exp(-(z**2) / 2)
    weight = weight / weight.sum()
    value = (mean + std * z).clamp_min(0)
    first = (weight * value).sum()
    second = (weight * value**2).sum() - first**2
    got = rectified_moments(torch.tensor([mean], dtype=torch.float64), torch.tensor([std], dtype=torch.float64))
    torch.testing.assert_close(torch.cat(got), torch.stack([first, second]), rtol=1e-6, atol=1e-9)


def network(out: int) -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, out, 3, bias=False),
        nn.BatchNorm2d(out),
        nn.Flatten(),
        nn.Linear(out * 4, 7),
    )
    for norm in (model[1], model[4]):
        norm.weight.data.uniform_(0.5, 2)
        norm.bias.data.normal_()
        norm.running_var.uniform_(0.5, 2)
    return model.eval()


def second(out: int) -> tuple[LayerSpec, Sketch]:
    model = network(out)
    spec = inspect(model, torch.randn(2, 3, 6, 6))
    layer = next(layer for layer in spec.candidates if layer.name == "3")
    assert (layer.feeder, layer.follower) == ("1", "4")
    return layer, sketch(model, spec, None)["3"]


@pytest.mark.parametrize("out", [8, 80])
def test_guess_is_on_the_layers_side(out: int) -> None:
    layer, given = second(out)
    guess = prior_curvature(layer, given)
    assert guess.side is layer.side is (Side.OUTPUT if out == 8 else Side.INPUT)
    assert absorbs(layer, given)
    if out == 8:  # where the norm's variance enters the signal, all directions together have energy 1
        assert float(weighted_frame(guess, Metric(damping=1e-12)).energy.sum()) == pytest.approx(1)


def test_variance_that_the_norm_knows_is_taken_over() -> None:
    layer, given = second(8)
    guess = prior_curvature(layer, given)
    assert given.follower is not None
    variance = guess.signal.diagonal() - guess.mean**2
    torch.testing.assert_close(variance.float(), given.follower.variance)  # products are made in the weights' precision
    # One unit of change of any normalised channel matters as much as any other.
    gain = given.follower.weight.double() ** 2 / (given.follower.variance.double() + given.follower.eps)
    torch.testing.assert_close(guess.fisher / guess.fisher[0, 0], torch.diag(gain / gain[0]))


def test_input_of_a_convolution_is_a_rectified_normalised_map() -> None:
    layer, given = second(8)
    assert given.feeder is not None
    mean, variance = input_moments(layer, given)
    wanted = rectified_moments(given.feeder.bias.double(), given.feeder.weight.double())
    torch.testing.assert_close(mean.reshape(6, 9), wanted[0][:, None].expand(6, 9))
    torch.testing.assert_close(variance.reshape(6, 9), wanted[1][:, None].expand(6, 9))


def test_input_channels_are_guessed_at_one_tap_of_each() -> None:
    layer, given = second(8)
    guess, norm = prior_curvature(layer, given), given.feeder
    assert norm is not None
    assert guess.inputs is not None
    mean, variance = rectified_moments(norm.bias.double(), norm.weight.double())
    torch.testing.assert_close(guess.inputs.mean, mean)
    torch.testing.assert_close(guess.inputs.signal, variance.diag() + mean.outer(mean))
    torch.testing.assert_close(guess.columns, mean.repeat_interleave(9))
    taps, gain = given.weight.unflatten(1, (6, 9)), guess.fisher.diagonal().float()
    torch.testing.assert_close(guess.inputs.fisher.float(), torch.einsum("oct,o,odt->cd", taps, gain, taps))


def test_without_norms_the_guess_is_the_identity() -> None:
    model = nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 9))
    spec = inspect(model, torch.randn(2, 6))
    sketches = sketch(model, spec, None)
    for layer in spec.candidates:
        mean, variance = input_moments(layer, sketches[layer.name])
        assert not mean.any()
        assert torch.equal(variance, torch.ones_like(variance))
        power = torch.ones(9, dtype=torch.float64)
        assert torch.equal(output_gain(layer, sketches[layer.name], power), power / 9)


@pytest.mark.parametrize("field", ["weight", "variance", "everything"])
def test_degenerate_norms_give_finite_guesses(field: str) -> None:
    model = network(8)
    for norm in (model[1], model[4]):
        if field != "variance":
            norm.weight.data.zero_()
        if field != "weight":
            norm.running_var.zero_()
    if field == "everything":
        model[3].weight.data.zero_()
    spec = inspect(model, torch.randn(2, 3, 6, 6))
    for layer in spec.candidates:
        guess = prior_curvature(layer, sketch(model, spec, None)[layer.name])
        frame = weighted_frame(guess, Metric())
        tensors: list[Tensor] = [guess.signal, guess.fisher, guess.mean, frame.left, frame.right, frame.energy]
        assert all(tensor.isfinite().all() for tensor in tensors)
