"""Agreement, KL and accuracy against a count by hand."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hypercompress import fidelity
from hypercompress.errors import DataError
from hypercompress.fidelity import accuracy, compare, remembering
from hypercompress.running.calling import call_model
from hypercompress.running.nested import labels_of
from hypercompress.running.outputs import as_numbers, divergence


class Fixed(nn.Module):
    """Gives its input as logits, plus an offset."""

    def __init__(self, offset: Tensor) -> None:
        super().__init__()
        self.offset = nn.Parameter(offset)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.offset


def test_values_are_means_over_images_whatever_the_batches() -> None:
    x, labels = torch.randn(11, 4), torch.randint(4, (11,))
    teacher, student = Fixed(torch.zeros(4)), Fixed(torch.tensor([0.0, 0.5, -1.0, 0.2]))
    got = compare(teacher, student, [(x[:8], labels[:8]), (x[8:], labels[8:])])
    p, q = F.log_softmax(x, 1), F.log_softmax(x + student.offset.detach(), 1)
    assert got.images == 11
    assert got.kl == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=1e-5)
    assert got.agreement == pytest.approx(float((p.argmax(1) == q.argmax(1)).double().mean()))
    assert got.top1_teacher == pytest.approx(float((p.argmax(1) == labels).double().mean()))
    assert got.top1_student == pytest.approx(float((q.argmax(1) == labels).double().mean()))
    assert accuracy(student, [(x, labels)]) == pytest.approx(got.top1_student)


@pytest.mark.parametrize("shape", [(7, 5, 4), (7, 4, 2, 3)], ids=["sequences", "maps"])
def test_every_position_of_every_image_counts_the_same(shape: tuple[int, ...]) -> None:
    x, offset = torch.randn(shape), torch.tensor([0.0, 0.5, -1.0, 0.2])
    axis = 2 if len(shape) == 3 else 1
    student = Fixed(offset if axis == 2 else offset[:, None, None])
    got = compare(Fixed(torch.zeros(())), student, [x[:4], x[4:]])
    p, q = (logits.double().log_softmax(axis) for logits in (x, student(x).detach()))
    assert got.images == 7
    assert got.kl == pytest.approx(float((p.exp() * (p - q)).sum(axis).mean()), rel=1e-5)
    assert got.agreement == pytest.approx(float((p.argmax(axis) == q.argmax(axis)).double().mean()))


def test_a_model_against_itself_agrees_wholly() -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5)).train()
    got = compare(model, model, [torch.randn(6, 5)])
    assert (got.agreement, got.kl, got.top1_teacher, got.top1_student) == (1.0, 0.0, None, None)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_one_unlabelled_batch_makes_accuracy_unknown() -> None:
    x, model = torch.randn(4, 3), Fixed(torch.zeros(3))
    got = compare(model, model, [(x, torch.zeros(4, dtype=torch.int64)), (x, torch.full((4,), -1))])
    assert got.top1_teacher is None
    with pytest.raises(DataError, match="received a batch without labels"):
        accuracy(model, [x])


def test_labels_that_are_no_classes_of_the_model_make_accuracy_unknown() -> None:
    x, model = torch.randn(4, 3), Fixed(torch.zeros(3))
    known, other = torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 2, 3])
    assert compare(model, model, [(x, known)]).top1_student is not None
    for labels in ([known, other], [other, known]):
        got = compare(model, model, [(x, batch) for batch in labels])
        assert (got.top1_teacher, got.top1_student, got.agreement) == (None, None, 1)


@pytest.mark.parametrize("every", [True, False])
def test_nan_anywhere_is_an_infinite_kl_never_left_out(every: bool) -> None:
    x = torch.randn(6, 3)
    teacher, student = Fixed(torch.zeros(3)), Fixed(torch.zeros(3))

    def forward(model: nn.Module, batch: Any) -> Tensor:
        output: Tensor = model(batch)
        return output * float("nan") if model is student and (every or batch is x) else output

    assert compare(teacher, student, [x, x.clone()], forward).kl == float("inf")


def test_the_kl_of_a_near_student_is_no_rounding() -> None:
    """Of the very outputs, in double precision: single precision leaves noise, half of it below zero."""
    found = []
    for seed in range(20):
        x = 5 * torch.randn(64, 10, generator=torch.Generator().manual_seed(seed))
        offset = 1e-4 * torch.randn(10, generator=torch.Generator().manual_seed(seed))
        teacher, student = Fixed(torch.zeros(10)), Fixed(offset)
        p, q = (output.double().log_softmax(1) for output in (x, x + offset))
        exact = float((p.exp() * (p - q)).sum(1).mean())
        assert compare(teacher, student, [x]).kl == pytest.approx(exact, rel=1e-6)
        found.append((float(divergence(x, x + offset).mean()), exact))
    assert min(raw for raw, _ in found) < 0 < min(exact for _, exact in found)


@pytest.mark.parametrize("numbers", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_the_kl_is_the_same_in_parts(numbers: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    run = as_numbers(call_model) if numbers else call_model
    x, student = torch.randn(7, 4).to(dtype), Fixed(torch.tensor([0.0, 0.5, -1.0, 0.2]).to(dtype))
    whole = compare(Fixed(torch.zeros(4).to(dtype)), student, [x], run).kl
    monkeypatch.setattr(fidelity, "PART", 9)
    assert compare(Fixed(torch.zeros(4).to(dtype)), student, [x], run).kl == pytest.approx(whole, rel=1e-12)
    gap = student.offset.detach().double().square().sum() / 2
    assert not numbers or whole == pytest.approx(float(gap), rel=1e-2)


def test_no_data_is_an_error() -> None:
    model = Fixed(torch.zeros(3))
    with pytest.raises(DataError, match="evaluation data without a single batch"):
        compare(model, model, [])
    with pytest.raises(DataError, match="evaluation data without a single batch"):
        accuracy(model, [])


@pytest.mark.parametrize(
    ("batch", "labelled"),
    [
        (torch.zeros(2, 3), False),
        ((torch.zeros(2, 3), torch.tensor([0, 1])), True),
        ([torch.zeros(2, 3), torch.tensor([0, -1])], False),
        ((torch.zeros(2, 3), torch.zeros(2)), False),
        ((torch.zeros(2, 3),), False),
        ({"x": torch.zeros(2, 3)}, False),
    ],
)
def test_what_counts_as_labels(batch: Any, labelled: bool) -> None:
    assert (labels_of(batch) is not None) is labelled


def test_a_teacher_that_is_remembered_answers_each_batch_once() -> None:
    torch.manual_seed(0)
    teacher, student = nn.Linear(4, 3), nn.Linear(4, 3)
    asked: list[nn.Module] = []

    def run(model: nn.Module, batch: Tensor) -> Tensor:
        asked.append(model)
        output: Tensor = model(batch)
        return output

    batches = list(torch.randn(6, 4).split(2))
    answer = remembering(teacher, run)
    found = [compare(teacher, student, batches, answer) for _ in range(3)]
    assert found == [compare(teacher, student, batches)] * 3
    assert (asked.count(teacher), asked.count(student)) == (3, 9)


def test_a_batch_that_is_gone_is_not_taken_for_a_new_one() -> None:
    teacher = Fixed(torch.zeros(4))
    answer = remembering(teacher)
    for seed in range(50):  # pieces of a split die at once, and their identity passes to the next
        given = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
        assert torch.equal(answer(teacher, given.view(3, 4)), given)


def test_torch_s_default_dtype_changes_nothing() -> None:
    """In half precision a sum of so many images would be infinite, and their mean zero."""
    torch.manual_seed(0)
    x = torch.randn(70_000, 3)
    teacher, student = Fixed(torch.zeros(3)), Fixed(torch.tensor([0.1, 0.0, 0.0]))
    wanted = compare(teacher, student, [x])
    torch.set_default_dtype(torch.float16)
    try:
        got = compare(teacher, student, [x])
    finally:
        torch.set_default_dtype(torch.float32)
    assert got == wanted


def test_logits_with_nan_name_no_class() -> None:
    """torch's largest of them is the NaN, which would be class 0 here: right, and the same in both models."""
    x = torch.randn(8, 4)
    labels, broken = torch.zeros(8, dtype=torch.int64), Fixed(torch.tensor([torch.nan, 0.0, 0.0, 0.0]))
    got = compare(broken, broken, [(x, labels)])
    assert (got.agreement, got.top1_teacher, got.top1_student, got.kl) == (0.0, 0.0, 0.0, math.inf)
    with pytest.warns(UserWarning, match=r"NaN in the model's outputs for 8 of 8 images, which count as wrong"):
        assert accuracy(broken, [(x, labels)]) == 0.0
    masked = Fixed(torch.tensor([0.0, -torch.inf, 0.0, 0.0]))  # a class that is ruled out
    assert compare(masked, masked, [(x, labels)]).agreement == 1.0
