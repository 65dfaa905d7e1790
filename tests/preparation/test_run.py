"""How a model is run is told once, to `prepare`: all that a plan is passed to runs teacher and students so."""

import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hypercompress import compress
from hypercompress.compress import finish, searched
from hypercompress.preparation import Plan, prepare
from hypercompress.probe import kl_scale
from hypercompress.search import search
from hypercompress.specs import Budget, KlScale
from tests.small_models import batches, network

HALF = Budget(params=0.5)


def brighter(model: Any, batch: Tensor) -> Tensor:
    """Takes networks only, apart, and what the batch holds is not what they read."""
    assert not hasattr(model, "model"), "a Student"
    output: Tensor = model[5:](model[:5](3 * batch + 1))
    return output


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    torch.manual_seed(0)
    return network()


@pytest.fixture(scope="module")
def plans(teacher: nn.Module) -> tuple[Plan, Plan]:
    """Told to run models on other images than those in the batches, and given these images."""
    told = prepare(teacher, batches(), "kfac", forward_fn=brighter)
    return told, prepare(teacher, [3 * batch + 1 for batch in batches()], "kfac")


def test_a_student_is_finished_and_measured_so(teacher: nn.Module, plans: tuple[Plan, Plan]) -> None:
    told, given = (finish(plan, HALF, final_fit=True) for plan in plans)
    whole = compress(teacher, HALF, batches(), "kfac", forward_fn=brighter)
    for other in (given, whole):
        assert told.report["fidelity"] == other.report["fidelity"]
        assert all(torch.equal(value, told.state_dict()[name]) for name, value in other.state_dict().items())


def test_a_scale_is_measured_so(plans: tuple[Plan, Plan]) -> None:
    told, given = (kl_scale(plan) for plan in plans)
    assert told == given != KlScale()


def test_ranks_are_searched_so(plans: tuple[Plan, Plan]) -> None:
    told, given = plans
    (ours, tries), (theirs, _) = (searched(plan, HALF, 1e-6, refit=False) for plan in (told, given))
    assert tries is not None
    assert ours.generator == theirs.generator
    assert ours.run is told.run
    assert search(told, HALF, 0.0).tries == 0


def test_numbers_are_read_so(teacher: nn.Module) -> None:
    """Outputs that are numbers by `prepare`'s reading are numbers to all that goes on from its plan."""
    options: dict[str, Any] = {"forward_fn": brighter, "outputs": "numbers"}
    student = finish(prepare(teacher, batches(), "kfac", **options), HALF)
    wanted = compress(teacher, HALF, batches(), "kfac", **options)
    assert student.report["fidelity"] == wanted.report["fidelity"]
    assert student.report["fidelity"]["agreement"] is None


@pytest.mark.parametrize("generator", ["kfac", "hypernet"])
def test_a_plan_is_pickled_with_how_its_model_is_run(teacher: nn.Module, generator: str) -> None:
    plan = prepare(teacher, batches(), generator, forward_fn=brighter, outputs="numbers")
    student = finish(plan, HALF)
    again = finish(pickle.loads(pickle.dumps(plan)), HALF)  # noqa: S301 - our own
    assert student.report["fidelity"] == again.report["fidelity"]
