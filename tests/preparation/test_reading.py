"""Where outputs have their classes, as the labels tell, and that everything reads them there."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypercompress import Budget, Student, compress
from hypercompress.fidelity import compare
from hypercompress.preparation import prepare
from hypercompress.preparation.reading import read_as
from hypercompress.report import reading
from hypercompress.running.calibration import CalibrationSplit
from hypercompress.running.calling import call_model
from hypercompress.running.outputs import as_read, lacking

CLASSES, SAMPLES = 5, 48


class Moved(nn.Module):
    """Logits of each position, ``axes`` of a linear head's in another order."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, CLASSES))
        self.axes = axes
        with torch.no_grad():
            self.layers[4].weight.mul_(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y.permute(self.axes) if self.axes else y


def drawn(*positions: int) -> Tensor:
    return torch.randn(SAMPLES, *positions, 6, generator=torch.Generator().manual_seed(1))


def labelled(x: Tensor) -> list[Any]:
    labels = torch.randint(0, CLASSES, x.shape[:-1], generator=torch.Generator().manual_seed(2))
    return list(zip(x.split(12), labels.split(12), strict=True))


def told(student: Student) -> dict[str, Any]:
    return {name: student.report[name] for name in ("fidelity", "predicted_kl", "refitted", "tilt")}


@pytest.mark.parametrize(
    ("axes", "back", "x", "axis"),
    [
        ((0, 2, 1), (0, 2, 1), drawn(7), 1),  # of F.cross_entropy
        ((), (0, 3, 1, 2), drawn(3, 4), 3),  # channels last
    ],
)
def test_classes_are_where_the_labels_have_no_axis(axes: Any, back: Any, x: Tensor, axis: int) -> None:
    """They were read as positions: the softmax ran over time, or over the lines of an image."""
    model, budget, data = Moved(*axes).eval(), Budget(params=0.6), labelled(x)

    def turned(network: nn.Module, batch: Any) -> Tensor:
        out: Tensor = network(batch[0])
        return out.permute(back)

    found = compress(model, budget, data, "kfac", final_fit=False)
    by_hand = compress(model, budget, data, "kfac", final_fit=False, forward_fn=turned)
    assert found.report["class_axis"] == axis
    assert "class_axis" not in by_hand.report
    assert told(found) == told(by_hand)
    for one, other in zip(found.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(one, other)
    held_out = prepare(model, data, "kfac").split.confirm  # type: ignore[union-attr]
    with torch.no_grad():
        logs = [[m(b[0]).movedim(axis, -1).log_softmax(-1) for b in held_out] for m in (model, found)]
    kl = torch.cat([(p.exp() * (p - q)).sum(-1).flatten() for p, q in zip(*logs, strict=True)]).mean()
    assert found.report["fidelity"]["kl"] == pytest.approx(float(kl), rel=1e-4)
    again = compare(model, found, held_out, reading(found, call_model))  # as `evaluate` does later
    assert again.kl == pytest.approx(float(kl), rel=1e-4)


def test_the_fisher_of_moved_logits_is_exact() -> None:
    model, data = Moved(0, 2, 1).eval(), labelled(drawn(7))
    plan, sequences = prepare(model, data, "kfac"), prepare(Moved().eval(), data, "kfac")
    ours, theirs = plan.sketches["layers.4"].curvature, sequences.sketches["layers.4"].curvature
    assert ours.logits
    torch.testing.assert_close(ours.fisher, theirs.fisher)
    output = torch.randn(3, CLASSES, 7)
    assert torch.equal(plan.run(nn.Identity(), output), output.mT)


@pytest.mark.parametrize(
    ("lengths", "axis"), [((7, 7), 1), ((CLASSES, CLASSES), None), ((CLASSES, 7), 1), ((7, CLASSES), 1)]
)
def test_as_many_positions_as_classes_are_told_by_other_batches(lengths: tuple[int, int], axis: int | None) -> None:
    batches = [labelled(drawn(length))[0] for length in lengths]
    assert read_as(Moved(0, 2, 1), CalibrationSplit(batches, [], []), None, "auto") == (False, axis)
    assert read_as(Moved(), CalibrationSplit(batches, [], []), None, "classes") == (False, None)


def first_position(network: nn.Module, batch: Any) -> Tensor:
    out: Tensor = network(batch[0])
    return out[:, :, 0]


@pytest.mark.parametrize(
    ("labels", "forward_fn"),
    [
        (lambda y: y / 2, None),  # real numbers
        (lambda y: y[:, :5], None),  # of another length
        (lambda y: y[:, 0], None),  # one for each sample
        (lambda y: y, first_position),
        (lambda y: y * 100, None),  # counts
        (lambda y: y - 1, None),  # padded
        (lambda y: y % 2, None),  # several labels at once, as many as there are positions
        (lambda y: y > 2, None),
    ],
    ids=["real", "fewer", "one", "one row", "counts", "padded", "several", "bools"],
)
def test_other_labels_say_nothing_of_the_axis(labels: Callable[[Tensor], Tensor], forward_fn: Any) -> None:
    data = [(x, labels(y)) for x, y in labelled(drawn(7))]
    assert read_as(Moved(0, 2, 1), CalibrationSplit(data, [], []), forward_fn, "auto") == (False, None)


@pytest.mark.parametrize("ignored", [-100, 255])
def test_labels_of_no_class_are_left_out(ignored: int) -> None:
    data = [(x, y.masked_fill(y == 1, ignored)) for x, y in labelled(drawn(7))]
    assert read_as(Moved(0, 2, 1), CalibrationSplit(data, [], []), None, "auto") == (False, 1)


@pytest.mark.parametrize("targets", ["classes", "numbers"])
def test_a_student_is_read_as_before_where_no_label_says_it(targets: str) -> None:
    """Of its student it was forgotten: the softmax ran over positions, or over numbers."""
    model, data = Moved(0, 2, 1).eval(), labelled(drawn(7))
    with torch.no_grad():
        data = data if targets == "classes" else [(x, model(x).neg()) for x, _ in data]
    first = compress(model, Budget(params=0.7), data, "kfac", final_fit=False)
    again = compress(first, Budget(params=0.6), [x for x, _ in data], "kfac", final_fit=False)
    wanted = compress(first.to_dense(), Budget(params=0.6), data, "kfac", final_fit=False)
    assert (again.report.get("class_axis"), again.report.get("outputs")) == (
        (1, None) if targets == "classes" else (None, "numbers")
    )
    assert again.report["fidelity"]["kl"] == pytest.approx(wanted.report["fidelity"]["kl"])
    free = compress(
        first, Budget(params=0.6), [x for x, _ in data], "kfac", forward_fn=lambda m, x: m(x), final_fit=False
    )
    assert "class_axis" not in free.report  # of other outputs, for all that is known


def test_lengths_that_fit_by_chance_are_denied_by_other_batches() -> None:
    """Texts, as of CTC, padded to as many letters as there are letters."""
    data = [(x, torch.ones(len(x), length).long()) for x, length in zip(drawn(7).split(12), (5, 5, 4, 5), strict=True)]
    assert read_as(Moved(), CalibrationSplit(data, [], []), None, "auto") == (False, None)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_one_class_at_each_position_is_a_number(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(6, 24, 3, padding=1), nn.Tanh(), nn.Conv1d(24, 1, 3, padding=1)).eval()
    data = [(x.mT, y.remainder(2).to(dtype)) for x, y in labelled(drawn(7))]
    assert compress(model, Budget(params=0.7), data, "kfac").report["fidelity"]["agreement"] is None


def test_the_axes_that_labels_lack() -> None:
    labels = torch.zeros(2, 3, 4)
    assert lacking(labels, torch.zeros(2, 3, 4, 5)) == {3}
    assert lacking(labels, torch.zeros(2, 5, 3, 4)) == {1}
    assert lacking(labels, torch.zeros(2, 3, 4, 4)) == {2, 3}
    assert lacking(labels, torch.zeros(2, 3, 4)) == lacking(labels, torch.zeros(3, 3, 4, 5)) == set()
    run = as_read(lambda model, batch: batch, numbers=False, axis=3)
    assert run(nn.Identity(), torch.zeros(2, 3, 4, 5)).shape == (2, 5, 3, 4)


def test_steadying_noise_is_read_as_numbers_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.Flatten(), nn.Linear(16 * 36, 4)).eval()
    data = torch.randn(24, 3, 8, 8).split(8)
    curvature = prepare(model, data, "kfac", steady=True, outputs="numbers").sketches["3"].curvature
    torch.testing.assert_close(curvature.fisher.diagonal(), torch.ones(4))
