"""Images that are in the support set twice: left out, since a copy gives away the image that a head is judged on."""

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from hypercompress import Student, adapt
from hypercompress.errors import DataError
from hypercompress.transfer import nearness
from hypercompress.transfer.given import first_ones
from tests.transfer.models import Make, model_of

OPTIONS = {"network": "none", "views": 2}


def equal(one: Student, other: Student) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in mine.items())


def moved_by_copies(x: Tensor, y: Tensor, how: str) -> Student:
    """By each image twice."""
    x, y, named = x.repeat(2, 1, 1, 1), y.repeat(2), {"names": ["a", "b", "c"], **OPTIONS}
    mixed = how == "mixed"  # is run anew for each pass
    loader = DataLoader(TensorDataset(x, y), 5, mixed, generator=torch.Generator().manual_seed(0))
    with pytest.warns(
        UserWarning, match=r"more than once, each with one class; expected each once, .* copies are left out"
    ):
        return adapt(model_of(), x, y, **OPTIONS) if how == "at once" else adapt(model_of(), loader, **named)


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("how", ["at once", "as they lie", "mixed"])
def test_copies_change_nothing(how: str, far: bool, make_task: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """With them leaving one out said 100 % and chose next to no penalty."""
    monkeypatch.setattr(nearness, "BAR", -1.0 if far else 2.0)
    x, y = make_task(shots=3)
    student, wanted = moved_by_copies(x, y, how), adapt(model_of(), x, y, **OPTIONS)
    told, other = (s.report["transfer"] for s in (student, wanted))
    assert told["images"] == len(x)
    assert told["penalty"] == other["penalty"]
    assert told["loo"]["plain"] == pytest.approx(other["loo"]["plain"])
    if how == "at once":
        assert equal(student, wanted)
    elif not far:  # else views are of batches
        torch.testing.assert_close(student(x), wanted(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("how", ["at once", "mixed"])
def test_a_copy_is_no_second_image_of_a_class(how: str, make_task: Make) -> None:
    told = moved_by_copies(*make_task(shots=1), how).report["transfer"]
    assert told["loo"]["plain"] == {"accuracy": None, "loss": None}
    assert told["images"] == 3


def test_an_image_of_two_classes_is_one_of_each(make_task: Make) -> None:
    x, y = make_task(shots=2)
    told = adapt(model_of(), torch.cat([x, x]), torch.cat([y, (y + 1) % 3]), **OPTIONS).report["transfer"]
    assert told["images"] == 2 * len(x)


def test_shots_are_drawn_of_what_is_no_copy(make_task: Make) -> None:
    x, y = make_task(shots=3)
    twice = x.repeat(2, 1, 1, 1), y.repeat(2)
    with pytest.warns(UserWarning, match="received support images more than once"):
        student = adapt(model_of(), *twice, shots=3, **OPTIONS)
    assert student.report["transfer"]["images"] == len(x)
    with pytest.raises(DataError, match=r"4 shots for classes with fewer images, copies left out: 0 \(3\), 1 \(3\)"):
        adapt(model_of(), *twice, shots=4, **OPTIONS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.uint8, torch.bool])
def test_what_is_the_same_in_every_bit_and_label_is_a_copy(dtype: torch.dtype) -> None:
    x = torch.tensor([0, 1, 0, 1, 1]).view(5, 1, 1, 1).expand(5, 2, 3, 4).to(dtype)
    seen, copied = set[tuple[int, tuple[int, ...], bytes]](), set[tuple[int, tuple[int, ...], bytes]]()
    assert first_ones(x, torch.tensor([0, 0, 0, 1, 0]), seen, copied).tolist() == [0, 1, 3]
    assert len(copied) == 2
    assert first_ones(x[:1], torch.tensor([0]), seen, copied).tolist() == []
    assert first_ones(x.transpose(2, 3)[:1], torch.tensor([0]), seen, copied).tolist() == [0], "of another shape"
