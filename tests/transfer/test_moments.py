"""Moments of the support set against a count by hand; nothing stays on the model."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hypercompress.transfer.adaptable import adaptable
from hypercompress.transfer.moments import Moments, Recorder


def record(
    model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]], classes: int
) -> tuple[dict[str, Moments], Recorder]:
    recorder = Recorder(model, adaptable(model).sites, classes)
    for images, labels in batches:
        with recorder.batch(labels), torch.no_grad():
            model(images)
    return recorder.finish(), recorder


def test_moments_are_those_of_the_normalised_input_whatever_the_batches() -> None:
    norm = nn.BatchNorm2d(3).eval()
    norm.running_mean, norm.running_var = torch.tensor([0.5, -1.0, 2.0]), torch.tensor([1.0, 4.0, 0.25])
    model, x, labels = nn.Sequential(norm), torch.randn(10, 3, 4, 4), torch.arange(10) % 2
    got, _ = record(model, [(x[:4], labels[:4]), (x[4:], labels[4:])], 2)
    z = (x - norm.running_mean[:, None, None]) / (norm.running_var + norm.eps).sqrt()[:, None, None]
    moments = got["0:norm"]
    torch.testing.assert_close(moments.mean, z.mean((0, 2, 3)))
    torch.testing.assert_close(moments.variance, z.var((0, 2, 3), unbiased=False))
    pooled = z.mean((2, 3))
    by_class = [pooled[labels == k] for k in (0, 1)]
    torch.testing.assert_close(moments.between, torch.stack([p.mean(0) for p in by_class]).var(0, unbiased=False))
    torch.testing.assert_close(moments.within, torch.stack([p.var(0) for p in by_class]).mean(0))


def test_one_image_a_class_has_no_variance_within() -> None:
    got, _ = record(nn.Sequential(nn.Linear(4, 3)), [(torch.randn(3, 4), torch.arange(3))], 3)
    assert not bool(got["0:bias"].within.any())
    assert bool(got["0:bias"].between.all())


def test_windows_belong_to_their_images() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:  # [n, 6, 4]: two windows of three tokens, one after another
            return self.inner(x.reshape(-1, 3, 4))

    model, x, labels = Windows(), torch.randn(5, 6, 4), torch.tensor([0, 0, 1, 1, 1])
    got, _ = record(model, [(x, labels)], 2)
    pooled = model.inner(x).mean(1).detach()
    wanted = torch.stack([pooled[labels == k].mean(0) for k in (0, 1)]).var(0, unbiased=False)
    torch.testing.assert_close(got["inner:bias"].between, wanted)


def test_what_is_not_called_or_mixes_images_has_no_moments_and_a_reason() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.idle, self.mixing = nn.LayerNorm(4), nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.mixing(x.reshape(-1, 4)[:5])

    got, recorder = record(Odd(), [(torch.randn(4, 2, 4), torch.arange(4) % 2)], 2)
    assert got == {}
    assert recorder.unread == {"idle:norm": "it was never called", "mixing:norm": "it reads 5 rows of 4 images"}


def test_hooks_are_gone_even_after_a_fault() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    recorder = Recorder(model, adaptable(model).sites, 2)
    try:
        with recorder.batch(torch.tensor([0, 1])):
            model(torch.randn(2, 5, 4, 4))
    except RuntimeError:
        pass
    assert not any(module._forward_hooks for module in model.modules())
