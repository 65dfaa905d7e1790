"""The closed-form head against scikit-learn's, and against fitting it again without each image."""

import pytest
import torch
import torch.nn.functional as F
from sklearn.linear_model import Ridge as Reference
from torch import Tensor

from hypercompress.errors import DataError, NonFiniteError
from hypercompress.transfer.ridge import (
    DEFAULT_PENALTY,
    FLOOR,
    PENALTIES,
    SCALES,
    VIEWED_PENALTY,
    best_scales,
    choose,
    evenly,
    fit_ridge,
    frame,
    left_out_predictions,
    mean_square,
    solve,
)


def clusters(n: int, d: int, classes: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    labels = torch.arange(n) % classes
    means = torch.randn(classes, d, dtype=torch.float64)
    return means[labels] + spread * torch.randn(n, d, dtype=torch.float64) + 3, labels


@pytest.mark.parametrize(("n", "d"), [(12, 40), (40, 12), (20, 20)])
def test_weights_are_those_of_scikit_learn(n: int, d: int) -> None:
    x, labels = clusters(n, d, 4)
    absolute = 0.3 * float(mean_square(x - x.mean(0)))
    wanted = Reference(alpha=absolute, solver="cholesky").fit(x.numpy(), F.one_hot(labels).double().numpy())
    weight, bias = solve(x, labels, 4, 0.3)
    torch.testing.assert_close(weight, torch.from_numpy(wanted.coef_))
    torch.testing.assert_close(bias, torch.from_numpy(wanted.intercept_))


def left_out(x: Tensor, labels: Tensor, classes: int, penalty: float) -> Tensor:
    """Each image under the head fitted to the others, its bias set to the shares of all, one fit after another."""
    y, absolute, rows = F.one_hot(labels, classes).double(), penalty * float(mean_square(x - x.mean(0))), []
    for i in range(len(x)):
        keep = torch.arange(len(x)) != i
        fit = Reference(alpha=absolute, solver="svd").fit(x[keep].numpy(), y[keep].numpy())
        rows.append(torch.from_numpy(fit.predict(x[i : i + 1].numpy())[0]) - y[keep].mean(0) + y.mean(0))
    return torch.stack(rows)


@pytest.mark.parametrize(("n", "d"), [(9, 30), (30, 9)])
@pytest.mark.parametrize("penalty", [1e-3, 1.0])
def test_what_is_left_out_is_predicted_as_by_a_fit_to_the_others(n: int, d: int, penalty: float) -> None:
    x, labels = clusters(n, d, 3)
    centred, y = x - x.mean(0), F.one_hot(labels).double()
    values, basis = frame(centred)
    some = torch.tensor([penalty, 10 * penalty], dtype=torch.float64)
    got = left_out_predictions(values, basis, y, some * mean_square(centred))
    for one, value in zip(got, some.tolist(), strict=True):
        torch.testing.assert_close(one, left_out(x, labels, 3, value), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("n", "d"), [(9, 40), (9, 8)])
@pytest.mark.parametrize("penalty", [1e-3, 1.0])
def test_an_image_is_left_out_with_all_its_views(n: int, d: int, penalty: float) -> None:
    x, labels = clusters(n, d, 3)
    sets = torch.stack([x, *(x + torch.randn_like(x) for _ in range(2))])
    rows, y = sets.flatten(0, 1), F.one_hot(labels).double()
    absolute, wanted = penalty * mean_square(rows - rows.mean(0)), []
    for i in range(n):
        keep = torch.arange(n) != i
        fit = Reference(alpha=float(absolute), solver="svd")
        fit.fit(sets[:, keep].flatten(0, 1).numpy(), y[keep].repeat(3, 1).numpy())
        wanted.append(torch.from_numpy(fit.predict(x[i : i + 1].numpy())[0]) - y[keep].mean(0) + y.mean(0))
    values, basis = frame(rows - rows.mean(0))
    (got,) = left_out_predictions(values, basis, y, absolute[None])
    torch.testing.assert_close(got, torch.stack(wanted), rtol=1e-6, atol=1e-8)


def test_with_views_the_head_is_fitted_to_all_and_judged_on_the_images() -> None:
    x, labels = clusters(12, 40, 3, spread=2.0)
    rows = torch.cat([x, x + torch.randn_like(x)])
    head = fit_ridge(rows, labels, 3, views=1)
    weight, bias = solve(rows, labels.repeat(2), 3, head.penalty)
    torch.testing.assert_close(head.logits(x), head.scale * (x @ weight.T + bias))
    assert head.loo_accuracy is not None
    assert float(head.loo_accuracy * 12) == pytest.approx(round(head.loo_accuracy * 12)), "of 12 images, not of 24"
    for thrice, once in zip(solve(x.repeat(3, 1), labels.repeat(3), 3, 0.3), solve(x, labels, 3, 0.1), strict=True):
        torch.testing.assert_close(thrice, once)  # views that show nothing new make the images count more


def test_one_image_a_class_has_a_penalty_of_its_own_with_views() -> None:
    x, labels = clusters(3, 8, 3)
    assert fit_ridge(x, labels, 3).penalty == DEFAULT_PENALTY
    assert fit_ridge(x.repeat(2, 1), labels, 3, views=1).penalty == VIEWED_PENALTY


def test_leaving_out_gives_nothing_away() -> None:
    """On noise with many more features than images it is right about as often as a guess."""
    x, labels = torch.randn(60, 300, dtype=torch.float64), torch.arange(60) % 3
    head = fit_ridge(x, labels, 3)
    assert head.loo_accuracy is not None
    assert head.loo_loss is not None
    assert head.loo_accuracy < 0.6
    assert head.loo_loss > 1.0


def test_the_penalty_and_the_scale_have_the_least_leave_one_out_loss_of_the_grid() -> None:
    x, labels = clusters(24, 10, 3, spread=2.0)
    head = fit_ridge(x, labels, 3)
    assert head.loo_loss is not None
    assert head.penalty in PENALTIES
    for penalty in (*PENALTIES[::4], head.penalty):
        regressed = left_out(x, labels, 3, penalty)
        for scale in torch.logspace(0, 2, 21).tolist():
            assert head.loo_loss <= float(F.cross_entropy(regressed * scale, labels, label_smoothing=3 / 27)) + 1e-5
    right = left_out(x, labels, 3, head.penalty).argmax(1) == labels
    assert head.loo_accuracy == pytest.approx(float(right.double().mean()))
    wanted = F.cross_entropy(left_out(x, labels, 3, head.penalty) * head.scale, labels, label_smoothing=3 / 27)
    assert head.loo_loss == pytest.approx(float(wanted))


def test_a_few_right_answers_do_not_make_it_sure() -> None:
    """Two images a class, answered rightly when left out: with Laplace's rule the class named has at most 3/4."""
    x, labels = clusters(4, 6, 2, spread=0.01)
    head = fit_ridge(x, labels, 2)
    assert head.loo_accuracy == 1
    assert float(head.logits(x).softmax(1).max()) < 0.9


def test_the_scale_is_the_minimum_of_the_loss() -> None:
    regressed, labels = torch.randn(40, 3).double() / 4, torch.arange(40) % 3
    regressed[torch.arange(40), labels] += 0.15
    scale = float(best_scales(regressed[None], labels))
    assert SCALES[0] < scale < SCALES[1]
    losses = [float(F.cross_entropy(regressed * scale * factor, labels)) for factor in (0.99, 1.0, 1.01)]
    assert losses[1] == min(losses)
    both = best_scales(torch.stack([regressed, 2 * regressed]), labels, 0.2)
    assert float(both[0]) < scale
    assert float(both[0] / both[1]) == pytest.approx(2, rel=1e-3)


def test_penalties_a_few_at_a_time_are_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x, labels = clusters(24, 10, 3, spread=2.0)
    once = fit_ridge(x, labels, 3)
    monkeypatch.setattr("hypercompress.transfer.ridge.LARGEST", 150)
    assert fit_ridge(x, labels, 3).penalty == once.penalty


def test_logits_are_the_scaled_regression_and_keep_the_precision_of_the_features() -> None:
    x, labels = clusters(16, 6, 2)
    head = fit_ridge(x.float(), labels, 2)
    weight, bias = solve(x.float().double(), labels, 2, head.penalty)
    torch.testing.assert_close(head.logits(x.float().double()), head.scale * (x.float().double() @ weight.T + bias))
    assert head.logits(x.float()).dtype == torch.float32


def test_nothing_depends_on_the_unit_of_the_features_or_the_order_of_the_images() -> None:
    x, labels = clusters(15, 8, 3)
    queries = torch.randn(5, 8, dtype=torch.float64)
    wanted = fit_ridge(x, labels, 3)
    for head in (
        fit_ridge(100 * x, labels, 3).logits(100 * queries),
        fit_ridge(x + 7, labels, 3).logits(queries + 7),
        fit_ridge(x.flip(0), labels.flip(0), 3).logits(queries),
    ):
        torch.testing.assert_close(head, wanted.logits(queries), rtol=1e-6, atol=1e-6)


def test_the_solution_passes_gradients_to_the_features() -> None:
    for n, d in ((6, 9), (9, 4)):
        x, labels = clusters(n, d, 3)
        assert torch.autograd.gradcheck(lambda f, y=labels: solve(f, y, 3, 0.1), x.requires_grad_())


def test_one_image_a_class_leaves_nothing_to_leave_out() -> None:
    x = torch.randn(4, 7)
    head = fit_ridge(x, torch.arange(4), 4)
    assert (head.penalty, head.loo_accuracy, head.loo_loss) == (DEFAULT_PENALTY, None, None)
    assert head.logits(x).argmax(1).tolist() == [0, 1, 2, 3]


def test_images_alone_in_their_class_do_not_count() -> None:
    x, labels = clusters(12, 5, 2)
    y = F.one_hot(torch.cat([labels, torch.tensor([2])])).double()
    x = torch.cat([x, torch.full((1, 5), 50.0, dtype=torch.float64)])
    counted = torch.arange(13) < 12
    choice = choose(x - x.mean(0), y, counted)
    assert choice.accuracy is not None
    assert choice.accuracy * 12 == pytest.approx(round(choice.accuracy * 12))
    assert fit_ridge(x, y.argmax(1), 3).loo_accuracy == choice.accuracy


def test_equal_images_give_the_shares_of_the_classes() -> None:
    head = fit_ridge(torch.ones(6, 3), torch.tensor([0, 0, 0, 0, 1, 1]), 2)
    wanted = torch.tensor([4 / 6, 2 / 6], dtype=torch.float64) * head.scale
    torch.testing.assert_close(head.logits(torch.ones(1, 3).double())[0], wanted)


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0, 0, 0], 1, "received a support set of 1 class; expected at least two"),
        ([0, 1, 2], 2, "received labels from 0 to 2 for 2 classes; expected 0 to 1"),
        ([0, 0, 2], 3, "received no support image of class 1; expected at least one of each of the 3 classes"),
    ],
)
def test_labels_that_no_head_can_be_fitted_to(labels: list[int], classes: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        fit_ridge(torch.randn(3, 4), torch.tensor(labels), classes)


def test_features_that_are_no_numbers() -> None:
    with pytest.raises(NonFiniteError, match="received features of the support images with NaN or infinity"):
        fit_ridge(torch.tensor([[1.0], [float("nan")]]), torch.tensor([0, 1]), 2)


def test_evenly_is_ridge_regression_on_features_divided_by_the_root_of_their_deviations() -> None:
    x, labels = clusters(20, 12, 4)
    x = x * torch.logspace(-2, 2, 12, dtype=torch.float64)
    deviation = x.std(0, correction=0)
    divided = x / (deviation / deviation.mean() + FLOOR).sqrt()
    wanted, got = fit_ridge(divided, labels, 4), fit_ridge(x, labels, 4, factors=evenly(x))
    torch.testing.assert_close(got.logits(x), wanted.logits(divided))
    assert (got.penalty, got.loo_loss) == (wanted.penalty, pytest.approx(wanted.loo_loss))
    assert not torch.allclose(got.logits(x), fit_ridge(x, labels, 4).logits(x))


def test_evenly_does_not_depend_on_the_unit_and_bears_features_that_do_not_vary() -> None:
    x, labels = clusters(10, 6, 5)
    x[:, 2] = 7.0
    head, other = (fit_ridge(scale * x, labels, 5, factors=evenly(scale * x)) for scale in (1, 1000))
    torch.testing.assert_close(head.logits(x), other.logits(1000 * x))
    assert bool(head.weight.isfinite().all())
    assert torch.equal(evenly(torch.ones(4, 3)), torch.ones(3))
