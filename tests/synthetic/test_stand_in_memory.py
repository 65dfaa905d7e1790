"""Noise that stands in for images is passed in as few samples at once as memory has room for."""

import pytest
import torch
from torch import Tensor, nn

from hypercompress.preparation import prepare
from hypercompress.synthetic.stand_in import stand_in

SIZE = (2, 12, 12)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5)
    ).eval()


def example() -> Tensor:
    return torch.zeros(2, *SIZE)


@pytest.mark.parametrize("device", ["CPU", "GPU"])
def test_memory_bounds_the_backward_pass_of_noise_on_any_device(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its batches are no choice of the user's; of images on a GPU the batches are as they were passed."""
    monkeypatch.setattr("hypercompress.synthetic.stand_in.usual_images", lambda _: 96)
    monkeypatch.setattr(nn.Parameter, "is_cpu", device == "CPU", raising=False)
    monkeypatch.setattr("hypercompress.preparation.measuring.samples_of_a_pass", lambda _: 8)
    model, sizes = network(), list[int]()
    model.register_forward_hook(
        lambda _m, inputs, _o: sizes.append(len(inputs[0])) if torch.is_grad_enabled() else None
    )
    prepare(model, None, "auto", example=example())
    assert 0 < max(sizes) <= 8
    sizes.clear()
    images = torch.cat(stand_in(model, example()) or []).split(16)
    prepare(model, images, "kfac")
    assert max(sizes) == (8 if device == "CPU" else 16)
