"""One reading of a model's output for curvature, guard and losses: logits of classes, or numbers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from hypercompress import Budget, compress, from_pretrained
from hypercompress.curvature.fisher import fisher_probe
from hypercompress.errors import DataError, ModelError
from hypercompress.fidelity import accuracy, compare
from hypercompress.losses import distillation_kl
from hypercompress.running.outputs import logits_of, tensor_of

X = torch.arange(15.0).reshape(3, 5)


@pytest.mark.parametrize(
    ("shape", "rows"),
    [
        ((3,), None),
        ((3, 1), None),
        ((3, 5), (3, 1, 5)),
        ((3, 7, 5), (3, 7, 5)),
        ((3, 7, 1), None),
        ((3, 5, 1, 1), (3, 1, 5)),
        ((3, 5, 2, 4), (3, 8, 5)),
        ((3, 1, 2, 4), None),
    ],
)
def test_rows_of_logits(shape: tuple[int, ...], rows: tuple[int, ...] | None) -> None:
    found = logits_of(torch.randn(shape))
    assert (None if found is None else tuple(found.shape)) == rows


@dataclass
class Detections:
    """As libraries return them that know no dicts."""

    boxes: Tensor
    logits: Tensor


@pytest.mark.parametrize(
    "output",
    [
        X,
        (X,),
        (X, [], None),
        {"out": X},
        {"loss": None, "inner": ([X],)},
        {"hidden_states": (X + 1, X + 2), "logits": X},
        Detections(X + 1, X),
        NamedTuple("Pair", [("state", Tensor), ("logits", Tensor)])(X + 1, X),
    ],
    ids=["tensor", "single", "with-nothing", "dict", "nested", "logits", "dataclass", "named"],
)
def test_the_tensor_of_an_output(output: Any) -> None:
    assert tensor_of(output, "") is X


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ((X, X), r"returns tuple of 0 \[3, 5\], 1 \[3, 5\]; expected one tensor, or logits; pick it"),
        ({"out": X, "aux": [X]}, r"returns dict of out \[3, 5\], aux list; expected"),
        ({"logits": None, "loss": None}, r"returns dict of logits NoneType, loss NoneType; expected"),
        ([X, X], "returns list; expected"),
        (None, "returns NoneType; expected"),
    ],
    ids=["two", "dict", "empty", "list", "none"],
)
def test_an_output_of_no_or_several_tensors_is_told_by_its_parts(output: Any, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        tensor_of(output, "pick it")


def test_a_model_with_logits_among_its_outputs_needs_no_forward_fn(tmp_path: Path) -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return Classifier().eval()

    images = torch.randn(24, 12, generator=torch.Generator().manual_seed(1))
    student = compress(network(), Budget(params=0.6), images.split(8), "kfac")
    picked = compress(network(), Budget(params=0.6), images.split(8), "kfac", forward_fn=lambda m, x: m(x)["logits"])
    assert student.ranks == picked.ranks != {}
    assert torch.equal(student(images)["logits"], picked(images)["logits"])
    student.save_pretrained(tmp_path / "student")
    again = from_pretrained(tmp_path / "student", skeleton=network())
    assert torch.equal(again(images)["logits"], student(images)["logits"])


class Classifier(nn.Module):
    """Gives what transformers' models give: logits, and what led to them."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(12, 40), nn.Linear(40, 5)

    def forward(self, x: Tensor) -> dict[str, Any]:
        states = self.body(x).relu()
        return {"loss": None, "logits": self.head(states), "hidden_states": (x, states)}


def test_maps_are_rows_of_classes() -> None:
    output = torch.randn(2, 5, 3, 4)
    rows = logits_of(output)
    assert rows is not None
    assert torch.equal(rows[1, 4 * 2 + 3], output[1, :, 2, 3])


class Shaped(nn.Module):
    """A small classifier whose output has another shape."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(12, 32), nn.Tanh(), nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, 6))
        self.shape = shape
        with torch.no_grad():
            self.layers[4].weight.mul_(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y.reshape(len(x), *self.shape)


def inputs(count: int = 256) -> Tensor:
    return torch.randn(count, 12, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 6)])
def test_a_reshaped_classifier_is_compressed_as_the_classifier(shape: tuple[int, ...]) -> None:
    plain, shaped = (compress(Shaped(*s).eval(), Budget(params=0.6), inputs().split(32), "kfac") for s in ((6,), shape))
    for key in ("predicted_kl", "fidelity", "refitted", "tilt"):
        assert shaped.report[key] == plain.report[key], key
    assert shaped.ranks == plain.ranks


@pytest.mark.parametrize("shape", [(6,), (6, 1, 1), (1, 6)])
def test_accuracy_reads_classes_where_they_are(shape: tuple[int, ...]) -> None:
    model, x = Shaped(*shape).eval(), inputs()
    labels = Shaped(6).eval()(x).argmax(1)
    labels[:64] = (labels[:64] + 1) % 6
    assert accuracy(model, [(x, labels)]) == 0.75


def test_numbers_have_no_accuracy() -> None:
    model, x = nn.Linear(12, 1), inputs()
    with pytest.raises(DataError, match=r"received a model without one class for each image"):
        accuracy(model, [(x, torch.zeros(len(x), dtype=torch.int64))])


def test_maps_and_sequences_of_the_same_logits_agree() -> None:
    teacher, student = (torch.randn(4, 5, 3, 2, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    rows = [t.movedim(1, -1).flatten(1, 2) for t in (teacher, student)]
    flat = [r.flatten(0, 1) for r in rows]
    expected = distillation_kl(flat[1], flat[0])
    torch.testing.assert_close(distillation_kl(student, teacher), expected)
    torch.testing.assert_close(distillation_kl(rows[1], rows[0]), expected)


@pytest.mark.parametrize("shape", [(6,), (2, 3), (3, 1, 2)])
def test_the_probes_covariance_is_the_curvature_of_the_measured_kl(shape: tuple[int, ...]) -> None:
    """E[g g^T] of the probe against the second derivative of `distillation_kl`, whose minimum the teacher is."""
    output = torch.randn(1, *shape, generator=torch.Generator().manual_seed(2)).double()

    def kl(flat: Tensor) -> Tensor:
        rows, theirs = logits_of(flat.reshape(output.shape)), logits_of(output)
        assert rows is not None
        assert theirs is not None
        return (theirs.softmax(-1) * (theirs.log_softmax(-1) - rows.log_softmax(-1))).sum(-1).mean()

    exact = torch.autograd.functional.hessian(kl, output.flatten())
    assert isinstance(exact, Tensor)
    many = output.expand(20_000, *shape).clone().requires_grad_()
    (found,) = torch.autograd.grad(fisher_probe(many, torch.Generator().manual_seed(3)), many)
    found = found.flatten(1)
    torch.testing.assert_close(found.T @ found / len(found), exact, rtol=0, atol=0.02 * float(exact.diagonal().max()))


def test_numbers_have_no_agreement_and_half_the_squared_difference() -> None:
    teacher = Shaped(6, 1).eval()
    teacher.layers[4] = nn.Linear(24, 6)
    student = Shaped(6, 1).eval()
    x = inputs()
    found = compare(teacher, student, [(x, torch.zeros(len(x), dtype=torch.int64))])
    with torch.no_grad():
        wanted = (teacher(x) - student(x)).square().flatten(1).sum(1).mean() / 2
    assert found.kl == pytest.approx(float(wanted))
    assert found.agreement is found.top1_teacher is found.top1_student is None
    report = compress(teacher, Budget(params=0.6), x.split(32), "kfac").report
    assert report["fidelity"]["agreement"] is None
    assert report["fidelity"]["kl"] > 0


def test_one_number_a_sample_needs_no_axis_of_its_own() -> None:
    first = nn.Linear(24, 1)

    def report(*shape: int) -> dict[str, Any]:
        model = Shaped(*shape).eval()
        model.layers[4] = first
        return compress(model, Budget(params=0.6), inputs().split(32), "kfac").report

    plain, squeezed = report(1), report()
    for key in ("predicted_kl", "fidelity", "refitted", "tilt"):
        assert squeezed[key] == plain[key], key


@pytest.mark.parametrize(
    ("read", "what"),
    [
        (lambda y: y.mean(), r"torch.float32 of shape \[\]"),
        (lambda y: y.argmax(1), r"torch.int64 of shape \[32\]"),
        (lambda y: y > 0, r"torch.bool of shape \[32, 6\]"),
    ],
)
def test_what_is_no_real_number_for_each_sample_is_refused(read: Callable[[Tensor], Tensor], what: str) -> None:
    with pytest.raises(ModelError, match=f"received a model that returns {what}; expected real numbers"):
        compress(Shaped(6), Budget(params=0.6), inputs().split(32), "kfac", forward_fn=lambda m, x: read(m(x)))
