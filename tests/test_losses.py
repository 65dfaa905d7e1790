"""Distillation losses against torch's own and against identities."""

import pytest
import torch
import torch.nn.functional as F

from hypercompress.losses import distillation_kl, feature_loss


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("shape", [(5, 7), (2, 3, 7)])
def test_kl_is_torchs(temperature: float, shape: tuple[int, ...]) -> None:
    student, teacher = torch.randn(shape), torch.randn(shape)
    p, log_q = F.softmax(teacher / temperature, -1), F.log_softmax(student / temperature, -1)
    wanted = F.kl_div(log_q.reshape(-1, 7), p.reshape(-1, 7), reduction="batchmean") * temperature**2
    torch.testing.assert_close(distillation_kl(student, teacher, temperature), wanted)


def test_kl_is_zero_for_equals_up_to_a_shift_and_its_gradient_is_the_difference_of_probabilities() -> None:
    teacher = torch.randn(4, 6, dtype=torch.float64)
    assert float(distillation_kl(teacher + 3, teacher)) == pytest.approx(0, abs=1e-6)
    student = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(distillation_kl(student, teacher), student)
    torch.testing.assert_close(gradient, (F.softmax(student, 1) - F.softmax(teacher, 1)) / 4, rtol=1e-5, atol=1e-7)


def test_high_temperature_is_half_the_squared_error_of_centred_logits() -> None:
    """Hinton et al. 2015, section 2.1: T^2 KL -> 1 / (2 N) || z - v ||^2."""
    a, b = torch.randn(3, 5), torch.randn(3, 5)
    gap = (a - a.mean(1, keepdim=True)) - (b - b.mean(1, keepdim=True))
    torch.testing.assert_close(distillation_kl(a, b, 300.0), (gap**2).sum(1).mean() / 10, rtol=0.02, atol=2e-3)


def test_feature_loss_is_relative_and_a_mean_over_maps() -> None:
    maps = [torch.randn(2, 3, 4, 4), 50 * torch.randn(2, 8)]
    assert float(feature_loss(maps, maps)) == 0
    noisy = [m + m.std() * 0.5 * torch.ones_like(m) for m in maps]
    assert float(feature_loss(noisy, maps)) == pytest.approx(0.25, rel=1e-5)


def test_feature_loss_is_relative_to_the_teachers_variance_alone() -> None:
    theirs = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(feature_loss([3 * theirs], [theirs]), 4 * theirs.square().mean() / theirs.var())


def test_feature_loss_wants_maps_in_pairs() -> None:
    with pytest.raises(ValueError, match="received no feature maps; expected at least one pair"):
        feature_loss([], [])
    with pytest.raises(ValueError, match="longer than argument 1"):
        feature_loss([torch.randn(2, 2)], [torch.randn(2, 2)] * 2)


def test_feature_loss_of_a_constant_map_is_finite() -> None:
    assert feature_loss([torch.ones(2, 3)], [torch.zeros(2, 3)]).isfinite()
