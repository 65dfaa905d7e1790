"""The generator of images from noise: sizes, seeds, and that everything in it is learned."""

import itertools

import pytest
import torch

from hypercompress.synthetic.image_generator import COARSEST, PyramidGenerator
from hypercompress.synthetic.inversion import fading_noise


@pytest.mark.parametrize("size", [(3, 64, 64), (1, 28, 28), (2, 7, 33), (3, 1, 1), (4, 3, 50)])
def test_images_have_the_size_asked_for(size: tuple[int, int, int]) -> None:
    generator = PyramidGenerator(size)
    assert generator(2).shape == (2, *size)
    assert generator.sizes[-1] == size[1:]
    assert min(generator.sizes[0]) <= COARSEST
    for coarse, fine in itertools.pairwise(generator.sizes):
        assert coarse == (-(-fine[0] // 2), -(-fine[1] // 2))


def test_a_seed_is_a_generator_and_nobody_elses_numbers_are_drawn() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, again, other = (PyramidGenerator((3, 16, 16), seed)(4) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_each_call_gives_other_images_and_all_differ() -> None:
    generator = PyramidGenerator((1, 16, 16))
    a, b = generator(4), generator(4)
    every = torch.cat([a, b]).flatten(1)
    apart = torch.cdist(every, every) + torch.eye(8) * 1e3
    assert apart.min() > 0.1 * every.std() * 16


def test_every_weight_is_learned() -> None:
    generator = PyramidGenerator((3, 20, 24))
    generator(4).square().mean().backward()
    assert all(weight.grad is not None for weight in generator.parameters())
    assert all(
        bool(weight.grad.any()) for weight in generator.parameters() if weight.ndim > 1 and weight.grad is not None
    )


def test_low_frequencies_are_the_strong_ones_before_anything_is_learned() -> None:
    """Far from white noise: the share of the power in the lower half of the frequencies."""

    def low(images: torch.Tensor) -> float:
        power = torch.fft.rfft(images - images.mean()).abs().square().mean((0, 1, 2))[1:]
        return float(power[: len(power) // 2].sum() / power.sum())

    with torch.no_grad():
        made = torch.cat([PyramidGenerator((1, 28, 28), seed)(32) for seed in range(4)])
    white, natural = (fading_noise(128, (1, 28, 28), torch.Generator().manual_seed(0), e) for e in (0.0, 1.0))
    assert low(white) < 0.55
    assert 0.65 < low(made) < low(natural)
