"""Never worse than the safe choice on images that no choice has seen."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from hypercompress.errors import NonFiniteError
from hypercompress.fidelity import compare
from hypercompress.guard import STRENGTHS, Judge, choose


class Offset(nn.Module):
    """A candidate whose KL is one number on the selection split (marked 0) and another on the confirmation split."""

    def __init__(self, select: float, confirm: float) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor([select, confirm]))

    def forward(self, x: Tensor) -> Tensor:
        gap = self.values[x[:, 0].long()]
        return torch.stack([gap, torch.zeros_like(gap)], 1)


SELECT, CONFIRM = [torch.zeros(3, 1)], [torch.ones(3, 1)]
TEACHER = Offset(0.0, 0.0)
gaps = st.floats(0, 5)


@settings(max_examples=60)
@given(st.lists(st.tuples(gaps, gaps), min_size=1, max_size=5))
def test_choice_is_never_worse_on_the_confirmation_split(candidates: list[tuple[float, float]]) -> None:
    models = [Offset(*pair) for pair in candidates]
    index, model = choose(Judge(TEACHER, SELECT, CONFIRM), [lambda m=m: m for m in models])
    assert model is models[index]
    kl = [compare(TEACHER, model, CONFIRM).kl for model in models]
    assert kl[index] <= kl[0]
    assert index == 0 or kl[index] < kl[0]


@pytest.mark.parametrize(
    ("candidates", "index"),
    [
        ([(1.0, 1.0)], 0),
        ([(1.0, 1.0), (0.5, 0.5)], 1),
        ([(1.0, 1.0), (0.5, 1.5)], 0),  # better where it was chosen, worse where it counts
        ([(1.0, 1.0), (1.0, 0.5)], 0),  # not better on the selection split: the safe one stays
        ([(1.0, 1.0), (0.5, 0.9), (0.2, 0.8)], 2),
        ([(1.0, 1.0), (float("nan"), 0.0)], 0),
        ([(float("nan"), float("nan")), (1.0, 1.0)], 1),
    ],
)
def test_choices(candidates: list[tuple[float, float]], index: int) -> None:
    models = [Offset(*pair) for pair in candidates]
    assert choose(Judge(TEACHER, SELECT, CONFIRM), [lambda m=m: m for m in models])[0] == index


@pytest.mark.parametrize("split", ["selected", "confirmed"])
def test_a_teacher_that_is_not_finite_judges_nothing(split: str) -> None:
    """Every student would be infinitely far from it, and the first would win."""
    judge = Judge(Offset(float("inf"), float("inf")), SELECT, CONFIRM)
    with pytest.raises(NonFiniteError, match="output for 3 held-out samples; expected finite values; check the calib"):
        getattr(judge, split)(Offset(0.0, 0.0))


def test_a_student_that_stays_is_measured_once() -> None:
    runs = list[nn.Module]()

    def forward(model: nn.Module, batch: Tensor) -> Tensor:
        runs.append(model)
        output: Tensor = model(batch)
        return output

    judge, safe, better, worse = (
        Judge(TEACHER, SELECT, CONFIRM, forward),
        *(Offset(*pair) for pair in ((1.0, 1.0), (0.5, 0.5), (2.0, 2.0))),
    )
    assert choose(judge, [lambda: safe, lambda: better]) == (1, better)
    assert choose(judge, [lambda: better, lambda: worse]) == (0, better)
    assert judge.confirmed(better).kl == compare(TEACHER, better, CONFIRM).kl
    assert judge.selected(better).kl == compare(TEACHER, better, SELECT).kl
    assert [runs.count(model) for model in (TEACHER, safe, better, worse)] == [2, 2, 2, 1]


def test_the_safe_strength_comes_first() -> None:
    assert STRENGTHS[0] == 0.0
    assert list(STRENGTHS) == sorted(STRENGTHS)
    assert STRENGTHS[-1] == 1.0
