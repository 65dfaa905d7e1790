"""Layers that the first few samples do not come to: experts that each take some samples."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypercompress import Budget, compress
from hypercompress.errors import BudgetError
from hypercompress.preparation import Plan, prepare
from hypercompress.specs import UNCALLED


class Experts(nn.Module):
    """Each sample goes to the one that its first number names."""

    def __init__(self, count: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 5)) for _ in range(count))

    def forward(self, x: Tensor) -> Tensor:
        out = x.new_zeros(len(x), 5)
        for number, expert in enumerate(self.experts):
            if (mine := x[:, 0].long() == number).any():
                out = out.index_put((mine,), expert(x[mine]))
        return out


def data(numbers: list[int]) -> list[Tensor]:
    """Batches of twelve; the first eight samples of all go to the first two experts."""
    x = torch.randn(5, 12, 6, generator=torch.Generator().manual_seed(1))
    x[:, :8, 0] = torch.tensor([0.0, 1.0]).repeat(4)
    x[:, 8:, 0] = torch.tensor(numbers).float()
    return list(x)


def uncalled(plan: Plan) -> set[str]:
    return {layer.name for layer in plan.spec.layers if UNCALLED in layer.reason}


def test_experts_that_later_samples_go_to_are_known() -> None:
    """They stayed dense, and were missing in the MACs."""
    model = Experts().eval()
    plan = prepare(model, data([2, 3, 2, 3]), "kfac")
    assert uncalled(plan) == set()
    assert plan.spec.macs == 4 * (6 * 24 + 24 * 5)  # as if all ran
    assert compress(model, Budget(params=0.5), data([2, 3, 2, 3]), "kfac").report["budget"]["achieved"] <= 0.5


def test_an_expert_that_no_sample_goes_to_is_named_by_the_budget() -> None:
    model, batches = Experts().eval(), data([2, 2, 1, 0])
    assert uncalled(prepare(model, batches, "kfac")) == {"experts.3.0", "experts.3.2"}
    said = (
        r"experts\.3\.0, experts\.3\.2 stay dense: no sample that was tried came to them; pass some that do as example="
    )
    with pytest.raises(BudgetError, match=said):
        compress(model, Budget(params=0.3), batches, "kfac")


@pytest.mark.parametrize("example", [None, data([2, 3, 2, 3])[0][:8]], ids=["none", "the user's"])
def test_an_example_of_the_users_stays_what_it_is(example: Any) -> None:
    plan = prepare(Experts().eval(), data([2, 3, 2, 3]), "kfac", example=example)
    assert bool(uncalled(plan)) == (example is not None)
