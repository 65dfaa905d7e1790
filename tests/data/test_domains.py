"""Domains: in range, deterministic, and what each says it is."""

import pytest
import torch

from hypercompress.data.domains import DOMAINS, in_domain
from hypercompress.errors import DataError


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_stay_in_range_and_are_the_same_for_the_same_seed(domain: str, channels: int) -> None:
    images = torch.rand(4, channels, 28, 28)
    a, b = (in_domain(images, domain, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(a, b)
    assert a.shape == images.shape
    assert 0 <= float(a.min()) <= float(a.max()) <= 1
    assert torch.equal(a, images) == (domain == "plain")
    torch.testing.assert_close(in_domain(images[:1], domain, torch.Generator().manual_seed(1)), a[:1])


def test_edges_of_a_flat_image_are_nothing_and_of_a_step_stand_at_the_step() -> None:
    images = torch.full((2, 1, 8, 8), 0.75)
    images[1, :, :, 4:] = 0.25
    flat, step = in_domain(images, "edges", torch.Generator())
    assert not bool(flat.any())
    assert step[0, 3].nonzero().flatten().tolist() == [3, 4]
    torch.testing.assert_close(step[0, 3, 3], torch.tensor(0.5))


def test_coarse_keeps_the_mean_of_each_block_of_a_flat_image() -> None:
    images = torch.full((1, 3, 28, 28), 0.3)
    torch.testing.assert_close(in_domain(images, "coarse", torch.Generator()), images)


def test_an_unknown_domain() -> None:
    with pytest.raises(DataError, match="received the domain 'wet'; expected one of plain, inverted"):
        in_domain(torch.rand(1, 1, 8, 8), "wet", torch.Generator())
