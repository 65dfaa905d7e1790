"""The Fisher of the outputs: exact where a layer gives the logits, drawn elsewhere, softened where samples are few."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import hypercompress
from hypercompress.curvature import measure
from hypercompress.curvature.fisher import SOFTENED, Probing, exact_fisher, fisher_probe, fisher_trace
from hypercompress.inspection import inspect
from hypercompress.specs import Budget, Curvature, Side
from tests.networks import Net, images


class Head(nn.Module):
    """A trunk of ReLUs and a layer on top of it, of whose output ``after`` makes the model's."""

    def __init__(self, trunk: nn.Module, head: nn.Module, after: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.net, self.after = Net(trunk, nn.ReLU(), head), after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.net(x))


def fisher_by_classes(logits: Tensor) -> Tensor:
    """E over samples of the mean over rows of E over classes of g g^T, g the gradient of the log-likelihood."""
    total = torch.zeros(logits.shape[-1], logits.shape[-1], dtype=torch.float64)
    for rows in logits.double():
        for row in rows:
            p = row.softmax(0)
            for label in range(len(p)):
                g = F.one_hot(torch.tensor(label), len(p)).double() - p
                total += p[label] * torch.outer(g, g) / (len(logits) * len(rows))
    return total


@pytest.mark.parametrize("wide", [False, True], ids=["output side", "input side"])
@pytest.mark.parametrize("kind", ["vector", "map", "sequence"])
def test_the_layer_that_gives_the_logits_has_their_exact_fisher(kind: str, wide: bool) -> None:
    classes, hidden = (9, 4) if wide else (3, 6)
    if kind == "map":
        model, x = Head(nn.Conv2d(2, hidden, 1), nn.Conv2d(hidden, classes, 1)), images(5, 2, 3, 2)
    else:
        model, x = (
            Head(nn.Linear(2, hidden), nn.Linear(hidden, classes)),
            images(*((5, 2), (5, 4, 2))[kind == "sequence"]),
        )
    logits = model(x).detach()
    rows = logits[:, None] if kind == "vector" else logits.flatten(2).mT if kind == "map" else logits
    exact, head = fisher_by_classes(rows), model.net[2]
    assert isinstance(head, nn.Linear | nn.Conv2d)
    weight = head.weight.detach().flatten(1)
    for seed in (0, 1):  # whatever is drawn
        found = measure(model, inspect(model, x), x.split(2), seed=seed)["net.2"]
        assert found.side is (Side.INPUT if wide else Side.OUTPUT)
        torch.testing.assert_close(found.fisher, weight.T @ exact @ weight if wide else exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "after",
    [lambda x: x * 2, lambda x: x.mul_(2), lambda x: x.unsqueeze(0).transpose(0, 1)],
    ids=["scaled", "scaled in place", "an axis more"],
)
def test_a_layer_whose_output_is_not_the_models_has_a_drawn_one(after: Callable[[Tensor], Tensor]) -> None:
    model, x = Head(nn.Linear(4, 6), nn.Linear(6, 3), after), images(5, 4)
    spec = inspect(model, x)
    a, b = (measure(model, spec, [x], seed=seed)["net.2"].fisher for seed in (0, 1))
    assert not torch.allclose(a, b)  # drawn
    many = measure(model, spec, [x.repeat(4000, 1)], seed=0)["net.2"].fisher
    logits = model(x).detach().reshape(len(x), 1, -1)
    expected = float(after(torch.ones(1, 1)).sum()) ** 2 * fisher_by_classes(logits)
    torch.testing.assert_close(many, expected, rtol=0, atol=0.02 * float(expected.diagonal().max()))


def test_logits_with_their_axes_in_another_order_have_their_exact_fisher() -> None:
    """``[b, 3, 4]`` of a Conv1d, which the model gives as a sequence."""
    model, x = Head(nn.Conv1d(2, 6, 1), nn.Conv1d(6, 3, 1), lambda y: y.mT), images(5, 2, 4)
    exact = fisher_by_classes(model(x).detach())
    for seed in (0, 1):
        found = measure(model, inspect(model, x), x.split(2), seed=seed)["net.2"]
        torch.testing.assert_close(found.fisher, exact, rtol=1e-5, atol=1e-7)


def test_some_of_a_layers_logits_have_a_drawn_fisher() -> None:
    model, x = Head(nn.Linear(4, 6), nn.Linear(6, 3), lambda y: y[:, 1:]), images(5, 4)
    a, b = (measure(model, inspect(model, x), [x], seed=seed)["net.2"].fisher for seed in (0, 1))
    assert not torch.allclose(a, b)


def test_a_sequence_of_channels_first_is_not_taken_for_one_of_classes_last() -> None:
    """``[b, 3, 3]`` of a Conv1d: its channels are the second axis, the classes of a sequence the third."""
    model, x = Head(nn.Conv1d(2, 6, 1), nn.Conv1d(6, 3, 1)), images(5, 2, 3)
    a, b = (measure(model, inspect(model, x), [x], seed=seed)["net.2"].fisher for seed in (0, 1))
    assert not torch.allclose(a, b)


def test_more_draws_take_noise_out_of_the_fisher_and_change_nothing_else() -> None:
    model, x = Net(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)), images(24, 4)
    spec = inspect(model, x)
    exact = measure(model, spec, [x.repeat(400, 1)], probing=Probing(draws=8), seed=9)["0"].fisher

    def error(probing: Probing) -> float:
        found = [measure(model, spec, x.split(8), probing=probing, seed=seed)["0"] for seed in range(8)]
        return float(torch.stack([(f.fisher - exact).norm() for f in found]).mean() / exact.norm())

    once, often = error(Probing()), error(Probing(draws=16))
    assert often == pytest.approx(once / 4, rel=0.35)  # of a mean of 16
    one, many = (measure(model, spec, [x], probing=Probing(draws))["0"] for draws in (1, 4))
    assert torch.equal(one.signal, many.signal)
    assert torch.equal(one.mean, many.mean)


def test_a_softened_fisher_has_the_trace_of_the_true_one_and_the_shape_of_the_softened() -> None:
    model, x = Head(nn.Linear(4, 6), nn.Linear(6, 3)), 3 * images(40, 4)
    spec = inspect(model, x)
    logits = model(x).detach()[:, None]
    true, softened = fisher_by_classes(logits), fisher_by_classes(logits / 2)
    assert float((true / true.trace() - softened / softened.trace()).abs().max()) > 0.02  # there is a difference
    found = measure(model, spec, x.split(16), probing=Probing(temperature=2.0))
    expected = softened * true.trace() / softened.trace()
    torch.testing.assert_close(found["net.2"].fisher, expected, rtol=1e-5, atol=1e-7)
    many = measure(model, spec, [x.repeat(500, 1)], probing=Probing(temperature=2.0))["net.0"]
    hidden = (model.net[0](x) > 0).double()
    weight = model.net[2].weight.detach()
    wanted = torch.zeros(6, 6, dtype=torch.float64)
    for alive, row in zip(hidden, logits, strict=True):
        through = weight * alive
        wanted += through.T @ fisher_by_classes(row[None] / 2) @ through / len(x)
    weight = model.net[0].weight.detach()
    wanted = weight.T @ wanted @ weight * true.trace() / softened.trace()  # four inputs, six outputs: the input side
    assert float((many.fisher - wanted).norm() / wanted.norm()) < 0.05


def test_outputs_that_are_no_logits_are_not_softened() -> None:
    model, x = Net(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1)), images(6, 4)
    spec = inspect(model, x)
    plain, softened = (measure(model, spec, [x], probing=Probing(1, t), seed=3)["0"].fisher for t in (1.0, 2.0))
    torch.testing.assert_close(plain, softened)


def test_a_teacher_without_doubt_has_no_fisher_softened_or_not() -> None:
    model, x = Head(nn.Linear(4, 6), nn.Linear(6, 3)), images(6, 4)
    with torch.no_grad():
        model.net[2].weight.mul_(1e6)
    for temperature in (1.0, 2.0):
        found = measure(model, inspect(model, x), [x], probing=Probing(temperature=temperature))
        assert all(c.fisher.isfinite().all() and float(c.fisher.abs().max()) < 1e-6 for c in found.values())


@pytest.mark.parametrize(
    ("samples", "probing"),
    [
        (0, Probing(8, SOFTENED)),
        (1, Probing(8, SOFTENED)),
        (64, Probing(8, SOFTENED)),
        (65, Probing(7, SOFTENED)),
        (256, Probing(2, SOFTENED)),
        (257, Probing()),
        (100_000, Probing()),
    ],
)
def test_few_samples_are_drawn_from_several_times_and_softened(samples: int, probing: Probing) -> None:
    assert Probing.of(samples) == probing


def test_a_generation_probes_as_suits_its_number_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = Head(nn.Linear(4, 6), nn.Linear(6, 3)), []
    spy: Callable[..., dict[str, Curvature]] = lambda *a, **k: (seen.append(k["probing"]), measure(*a, **k))[1]  # noqa: E731
    monkeypatch.setattr("hypercompress.sketch.measure", spy)
    for count in (32, 512):  # a quarter is held out
        hypercompress.compress(model, Budget(params=0.6), images(count, 4).split(count // 8), "kfac", final_fit=False)
    assert seen == [Probing.of(24), Probing.of(384)]


@pytest.mark.parametrize("shape", [(1, 4), (1, 1, 3, 2), (1, 1)], ids=["logits", "map", "scalar"])
def test_probe_has_the_fisher_of_the_outputs_as_covariance(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    output = torch.randn(shape, generator=generator) * 2
    many = output.expand(40_000, *shape[1:]).clone().requires_grad_()
    (gradient,) = torch.autograd.grad(fisher_probe(many, generator), many)
    rows = gradient.flatten(1)
    expected = torch.eye(rows.shape[1])
    if len(shape) == 2 and shape[1] > 1:
        p = F.softmax(output[0], 0)
        expected = p.diag() - torch.outer(p, p)
    torch.testing.assert_close(rows.T @ rows / len(rows), expected, atol=0.02, rtol=0)
    torch.testing.assert_close(rows.mean(0), torch.zeros(rows.shape[1]), atol=0.02, rtol=0)


@pytest.mark.parametrize("margin", [1, 10, 16, 19, 40, 80])  # nats; from 17 on float32 rounds p to one
def test_nothing_cancels_where_a_prediction_is_nearly_certain(margin: float) -> None:
    logits = images(6, 1, 5)
    logits[..., 2] = logits.amax(-1) + margin
    expected = 6 * fisher_by_classes(logits)
    found = exact_fisher(logits)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=float(expected.max()) * 1e-5)
    values = torch.linalg.eigvalsh(found.double())
    assert values.min() >= -1e-6 * values.max()
    torch.testing.assert_close(fisher_trace(logits[:, 0]).double(), expected.trace(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("margin", [1.0, 30.0, 150.0])
def test_sure_predictions_leave_the_shape_of_the_softened_fisher(margin: float) -> None:
    torch.manual_seed(0)
    model, x = Head(nn.Linear(4, 6), nn.Linear(6, 3)), images(24, 4)
    model.after = lambda logits: logits + margin * F.one_hot(logits.argmax(-1), 3)
    found = measure(model, inspect(model, x), x.split(8), probing=Probing(4, SOFTENED))["net.0"].fisher
    assert found.isfinite().all()
    assert found.trace() > 0
