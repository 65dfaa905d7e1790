"""The compression terms of the meta-loss: exact values, gradients that trade one cost for another, a run that does."""

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from hypercompress.errors import BudgetError
from hypercompress.generator.emission import Emission, emit
from hypercompress.generator.heads import Outputs
from hypercompress.inspection import inspect
from hypercompress.meta import Case, Objective, compression_loss, cost_share, prepare_case
from hypercompress.specs import COUNTED, Budget, Generation, Unit
from hypercompress.student import build_student
from hypercompress.tokens import BANDS

BUDGETS = (Budget(params=0.3), Budget(macs=0.4))


@pytest.fixture(scope="module")
def case() -> Case:
    torch.manual_seed(0)
    teacher = timm.create_model("test_resnet", pretrained=False, num_classes=10)
    for module in teacher.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):  # timm's last norms of blocks are zero at first: nothing is lost there
            nn.init.ones_(module.weight)
    return prepare_case("small", teacher, list(torch.randn(32, 3, 32, 32).split(16)))


def emitted(case: Case, budget: Budget, weight: Tensor | None = None, *, training: bool = True) -> Emission:
    n = len(case.spec.candidates)
    outputs = Outputs(*(torch.zeros(n) for _ in range(6)), torch.zeros(n, BANDS), torch.zeros(n, 8))
    outputs = outputs if weight is None else replace(outputs, weight=weight)
    return emit(case.spec, case.sketches[True], case.starts[True], outputs, budget, training=training)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("budget", BUDGETS)
def test_shares_are_those_of_the_student_as_it_is_counted(case: Case, budget: Budget, training: bool) -> None:
    emission = emitted(case, budget, training=training)
    student = build_student(case.teacher, case.spec, Generation(emission.factors(), emission.plan, "", 0.0))
    counted = inspect(student.model, torch.randn(2, 3, 32, 32))
    assert emission.plan.input_ranks, "the two-sided form is to be among them"
    macs = float(cost_share(case.spec, emission, Unit.MACS))
    assert macs == pytest.approx(counted.macs / case.spec.macs, rel=1e-9)
    # Biases that a factored layer gains aside, which no rank can change.
    assert float(cost_share(case.spec, emission, budget.unit)) == pytest.approx(emission.plan.achieved, rel=1e-9)


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_budget_holds_its_own_unit_and_leaves_the_other_to_choose(case: Case, budget: Budget) -> None:
    weight = torch.zeros(len(case.spec.candidates), requires_grad=True)
    emission = emitted(case, budget, weight)
    (other,) = (unit for unit in COUNTED if unit is not budget.unit)
    gradients = [
        torch.autograd.grad(cost_share(case.spec, emission, unit), weight, retain_graph=True)[0]
        for unit in (budget.unit, other)
    ]
    assert gradients[1].abs().max() > 1e-3
    # The masks of a two-sided form hold its cost to first order only: an input rank and a rank multiply.
    assert gradients[0].abs().max() < 0.1 * gradients[1].abs().max()


@pytest.mark.parametrize("budget", BUDGETS)
def test_following_the_gradient_lowers_the_other_cost_at_the_same_budget(case: Case, budget: Budget) -> None:
    objective = Objective(size=1.0, compute=1.0)
    weight = torch.zeros(len(case.spec.candidates), requires_grad=True)
    (other,) = (unit for unit in COUNTED if unit is not budget.unit)
    costs, optimiser = [], torch.optim.Adam([weight], 0.2)
    for _ in range(25):
        emission = emitted(case, budget, weight)
        costs.append(float(cost_share(case.spec, emission, other).detach()))
        optimiser.zero_grad()
        compression_loss(case, emission, objective).backward()
        optimiser.step()
    assert emission.plan.achieved <= budget.share + 1e-9
    assert costs[-1] < 0.93 * costs[0]


def test_weights_are_of_logarithms(case: Case) -> None:
    emission = emitted(case, BUDGETS[0])
    params, macs = (float(cost_share(case.spec, emission, unit).log()) for unit in COUNTED)
    got = float(compression_loss(case, emission, Objective(size=0.5, compute=0.25)))
    assert got == pytest.approx(0.5 * params + 0.25 * macs, rel=1e-6)
    assert float(compression_loss(case, emission, Objective())) == 0.0


def test_time_is_measured_or_refused(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BudgetError, match="without times"):
        compression_loss(case, emitted(case, BUDGETS[0]), Objective(latency=0.1))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    timed = prepare_case("timed", case.teacher, list(torch.randn(32, 3, 32, 32).split(16)), timed=True)
    assert timed.timed is not None
    weight = torch.zeros(len(timed.spec.candidates), requires_grad=True)
    emission = emitted(timed, BUDGETS[0], weight)
    share = cost_share(timed.timed, emission, Unit.LATENCY)
    (gradient,) = torch.autograd.grad(compression_loss(timed, emission, Objective(latency=1.0)), weight)
    assert 0 < float(share.detach()) < 1
    assert gradient.abs().max() > 0
    # By hand: each factored layer takes of its dense time what is left of its multiply-accumulates.
    left = timed.timed.latency
    for layer in timed.timed.candidates:
        if (rank := emission.plan.ranks.get(layer.name)) is not None:
            macs = layer.cost(Unit.MACS, rank, emission.plan.input_ranks.get(layer.name))
            assert layer.measured is not None
            left -= layer.measured.dense * (1 - macs / layer.dense_macs)
    assert float(share.detach()) == pytest.approx(left / timed.timed.latency, rel=1e-9)
